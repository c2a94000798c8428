"""An HTTP API for trained models: every pipeline as POST, OpenAI's embeddings, and re-ranking for search engines.

`app.py` builds the application from `models.py` (what is loaded), `tasks.py` (what each pipeline is asked),
`schemas.py` (what a request may hold) and `gate.py` (limits, keys, request ids, logs). `batching.py` joins the rows of
requests that arrive together. `running.py` serves it.
"""

from evle.server.app import build_app
from evle.server.limits import Limits
from evle.server.models import ServedModel, load_served
from evle.server.running import serve

__all__ = ["Limits", "ServedModel", "build_app", "load_served", "serve"]
