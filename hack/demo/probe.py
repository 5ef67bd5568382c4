"""Asks for URLs until all of them answer with 2xx, and shows what they said.

    probe.py SECONDS URL…

Prints a line for each URL: the URL, the status, the first line of the body.
Fails when SECONDS have passed before all were good.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request

# Straight to the address, whatever proxy the environment names.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url):
    """Returns status (0 where there was no answer) and a line of text."""
    try:
        with OPENER.open(url, timeout=5) as answer:
            return answer.status, first_line(answer.read(65536), answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, first_line(error.read(65536), error.headers)
    except urllib.error.URLError as error:
        return 0, str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__


def first_line(body, headers):
    text = body.decode("utf-8", "replace").strip()
    if not text:
        version = headers.get("X-Influxdb-Version")
        return "(no body; InfluxDB %s)" % version if version else "(no body)"
    try:
        text = json.dumps(json.loads(text))
    except ValueError:
        pass
    line = text.splitlines()[0].rstrip()
    return line if len(line) <= 150 else line[:149] + "…"


def main():
    deadline = time.monotonic() + float(sys.argv[1])
    urls = sys.argv[2:]
    while True:
        answers = [ask(url) for url in urls]
        good = all(200 <= status < 300 for status, _ in answers)
        if good or time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    width = max(map(len, urls))
    for url, (status, line) in zip(urls, answers):
        print("  %-*s  %s  %s" % (width, url, status or "---", line))
    sys.exit(not good)


if __name__ == "__main__":
    main()
