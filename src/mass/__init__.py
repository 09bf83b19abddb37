"""MASS: a language model practises on the one problem in front of it, then answers (arXiv 2603.03524)."""
