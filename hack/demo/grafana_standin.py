"""Stands in for Grafana in the demo where there is none.

It answers /api/health in the shape of Grafana's own answer, and says in every
answer that it is not Grafana.
"""

import http.server
import json

LABEL = "not Grafana: a stand-in of meshroute's demo"
HEALTH = json.dumps({"commit": "none", "database": "ok", "version": "0.0.0-stand-in", "standIn": LABEL})
PAGE = """<!doctype html>
<title>A stand-in for Grafana</title>
<h1>This is not Grafana</h1>
<p>It is a stand-in of meshroute's demo, which has found no Grafana on this machine.
It answers <a href="api/health">/api/health</a> as Grafana does, and nothing else.
<p>To see the real one here: install Grafana, so that <code>grafana</code> is on the PATH,
then run <code>make demo-down</code> and <code>make demo</code>.
"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the gateway reuses its connections
    wbufsize = -1  # head and body leave together

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api/health":
            self.answer(200, "application/json; charset=UTF-8", HEALTH + "\n")
        elif path == "/":
            self.answer(200, "text/html; charset=UTF-8", PAGE)
        else:
            self.answer(404, "text/plain; charset=UTF-8", LABEL + ": it has only /api/health and /\n")

    do_HEAD = do_GET

    def answer(self, status, kind, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Stand-In", LABEL)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Handler).serve_forever()
