"""Methods are compared on problems: answers, verdicts, costs, intervals, and a table."""
