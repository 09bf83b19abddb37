"""Given examples -> a model that has learned them: practice that a user brings, instead of practice the model writes.

`given` cleans the set, `asking` renders questions as they are, `lessons` makes the rows that are learned, `learning`
takes the steps for a stack of adapters, `writing` continues the set with examples of the model's own, `choosing` judges
the ways to use the set by held-out examples, and `use` puts them together.

References: Akyürek et al. 2024, arXiv 2411.07279 (test-time training on few-shot tasks); arXiv 2507.04221 (context
tuning, which compares learning in context, in weights and in keys and values).
"""
