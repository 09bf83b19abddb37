"""Other ways to the same meta-gradient, one module each: `prepare(problem, ...) -> () -> gradients`."""
