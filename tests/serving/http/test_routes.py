"""The small routes: ready, models, labels."""

from tests.serving.http.client import ask
from tests.support.fakes import FakeBackend


def test_ready_and_missing_models():
    class Loading(FakeBackend):
        async def ready(self):
            raise ConnectionError("not there")

    assert ask(method="GET", path="/ready").status_code == 200
    assert ask(Loading(), method="GET", path="/ready").status_code == 503
    assert ask(method="GET", path="/v1/models/other").status_code == 404
    assert ask(method="GET", path="/v1/labels?q=7").json()["data"] == [
        {"id": 7, "name": "7", "wordnet_id": None}
    ]
