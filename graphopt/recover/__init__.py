"""Accuracy back without gradients: closed-form solves on second moments, and the walk that feeds them.

numpy alone. What is solved are least squares problems over the rows that a linear operator sees
(:mod:`graphopt.recover.moments`): which channels to drop (``selection``), which weights make up for it
(``solve``), what rank a weight needs (``lowrank``), how rounding errors are passed on (``feedback``).

Nothing here raises an error of linear algebra. Where data do not determine an answer, the ridge rises or the
weight stays as it was, and a sentence that names the stage and the numbers stands in the notes.
"""
