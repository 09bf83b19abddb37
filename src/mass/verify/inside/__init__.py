"""The part of `mass.verify.sandbox` that runs isolated: it reads a request and writes a report, both JSON.

`launch` starts the two processes, `rooms` isolates them by means of `confine`, `judge` runs the tests, `candidate` the
program, `wire` encodes the messages between the two, and `remote` represents in the judge the objects that stay with
the program. Nothing here imports `mass` (whose values need torch): the folder is put at the end of `sys.path` and
imported as the package `inside`.
"""
