"""The commands of `mass`, one module each: parse the arguments, call the library, print. Nothing heavy is imported
before a command needs it."""
