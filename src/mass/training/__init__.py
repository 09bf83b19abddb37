"""Meta-training: problems in, a checkpoint that has learned how to practise out."""
