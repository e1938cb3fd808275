"""Every answer tells browsers what they may not do."""

from tests.serving.http.client import ask


def test_security_headers_are_everywhere():
    for path in ("/", "/health", "/nothing"):
        headers = ask(method="GET", path=path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
