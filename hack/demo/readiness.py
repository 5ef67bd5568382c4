"""Keeps `ready` in the demo's endpoints.yaml true to life.

    readiness.py FILE

In a cluster the kubelet tries a pod's port and the EndpointSlice tells whether
the pod is ready. Here this program does both: once a second it connects to each
address of the file, and changes the file when the answer is another one. An
address that is added to the file, written as the others are, is tried as well.
"""

import os
import re
import socket
import sys
import time

PORT = re.compile(r"\bport: *(\d+)")
ENDPOINT = re.compile(r"(?P<head>^- \{addresses: *\[ *(?P<address>[0-9.]+) *\].*\bready: *)(?P<ready>true|false)", re.MULTILINE)


def accepts(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def tried(text):
    slices = []
    for document in re.split(r"(?m)^(?=---)", text):
        port = PORT.search(document)
        if port:
            document = ENDPOINT.sub(
                lambda found: found["head"] + str(accepts(found["address"], int(port[1]))).lower(),
                document,
            )
        slices.append(document)
    return "".join(slices)


def update(path):
    with open(path, encoding="utf-8") as file:
        before = file.read()
    after = tried(before)
    if after == before:
        return
    # Under a name that the gateway does not read, then all at once.
    new = os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".new")
    with open(new, "w", encoding="utf-8") as file:
        file.write(after)
    with open(path, encoding="utf-8") as file:
        edited = file.read() != before
    if not edited:  # by someone, while the ports were tried
        os.replace(new, path)
        print("endpoints changed:", *re.findall(r"ready: *(?:true|false)", after), flush=True)


def main():
    while True:
        try:
            update(sys.argv[1])
        except OSError as error:
            print(error, flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
