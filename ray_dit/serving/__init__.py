"""The image endpoint: step-level batching engine, HTTP API and page, on Ray Serve.

Where a request becomes rows of a batch, from the top:

1. `http.routes`, ``Routes.generate``: a body, checked against model and limits, becomes an `ImageSpec`;
2. `deployments.replica_backend`: the spec goes to a replica of its model, or to another if that one dies;
3. `service`, ``ModelService.generate``: the spec, its sampler settled, becomes the engine's `Work`;
4. `engine.loop`, ``Engine.submit``: the work gets a `Ticket`, with a `Row` for each of its images;
5. `engine.policy`, ``Schedule.choose``: rows of any tickets are chosen for the next step;
6. `engine.batch`, ``Batch.gather``: the chosen rows become one ``core.sampling.Rows`` for ``denoise_step``.

On the way back the engine's events (`engine.decoder` makes pixels of latents) become messages with image
files (`service`, `backend`), and these an answer or a stream (`http.answers`, `http.streaming`).
"""
