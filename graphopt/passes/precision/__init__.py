"""What convert-float16 is made of: which nodes compute in half precision, and the edit."""
