"""The endpoint on Ray Serve: a deployment for the HTTP API, and one per model with an engine in each replica.

All of the serving side that knows Ray. `application.build` is what a Serve config file names;
`launcher.serve` runs it on this machine or a cluster. `replica` is a model's side, `replica_backend` the
API's side of what lies between the two, `router` how it chooses a replica; `terminal` shows their logs.
"""
