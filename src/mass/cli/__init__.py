"""argv -> one verb: parse, call, print. Nothing heavy is imported before a verb needs it."""
