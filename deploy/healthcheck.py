"""For the image: exit 0 if the process of this container answers, on its page or its metrics.

Whether it could also do its work is what /readyz says: a restart would not bring Postgres back.
"""

import os
import sys
import urllib.error
import urllib.request

page = os.environ.get("SYNC_WEB_PORT") or os.environ.get("PORT") or "8080"
metrics = os.environ.get("SYNC_METRICS_PORT")  # of a worker, which has no page
for port in filter(None, (page, metrics)):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=4)
    except urllib.error.HTTPError:
        pass  # it wants a token, or has no such path: an answer all the same
    except OSError:
        continue
    sys.exit(0)
sys.exit(1)
