"""What stands before every route, one concern per file, as pure ASGI.

`http.app` says in which order. Knows no models.
"""
