"""Another's network made faster and leaner in place: `asegnet_fast.fuse` and `asegnet_fast.unfuse`.

`walk` goes over the modules, `modules` and `functional` have what stands in for torch's, `indices` the int64 tensor
that is a byte a window until somebody looks, `calls` and `classes` reach the functions called in forward methods,
`measure` and `report` say what came of it.
"""
