"""The step-level batching engine: many tickets share each call of the network.

Knows nothing of HTTP, asyncio or Ray.

Read `tickets` (what comes in and goes out), `policy` (who takes part in the next call), `batch` (its rows),
`loop` (the thread that denoises) and `decoder` (the thread that makes pixels). `profile` times the model when
the engine starts, `bank` holds the samplers' tables, `model` is what the engine needs of a model.
"""
