"""What synthesize-constants is made of: structures of constants, ties between them, and the edit."""
