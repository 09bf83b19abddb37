"""What runs inside the sandbox of `mass.verify.code`: request on standard input -> report on standard output.

`launch` starts the two processes, `confine` takes their powers away, `judge` runs the tests, `candidate` the program,
`wire` is what passes between the two, `remote` how the judge holds what stays with the program. Nothing here imports
`mass` (whose values need torch): the folder is put at the end of `sys.path` and imported as the package `inside`.
"""
