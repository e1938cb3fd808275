"""The HTTP API: OpenAI's images API for class-conditional models, and the page.

Knows backends, no engine and no Ray. `app` puts it together; `routes` answers; `spec` turns a request's body
into what a backend is asked; `answers` and `streaming` turn a backend's messages into bodies and events.
`middleware/` holds what stands before every route, one concern per file.
"""
