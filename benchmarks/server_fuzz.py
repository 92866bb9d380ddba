"""Made-up requests against a server, by schemathesis from the OpenAPI document; the suite has a short version of it.

Every answer must be one that the document names, with the body that it describes, and no error of the server, which is
started here with low limits, so that the time goes into requests and not into images.

    python benchmarks/server_fuzz.py --max-examples 300
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["fashion-mnist-small", "spoken-digits-small"])
    parser.add_argument("--max-examples", type=int, default=300, help="of each operation and phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = [sys.executable, "-c", "import sys; from resgen.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    limits = ["--max-steps", "2", "--max-samples", "2", "--max-batch", "8", "--max-text", "40"]
    command = [*run, "serve", "--model", *options.model, "--port", "0", *limits]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        log: list[str] = []
        address = next(address_match[0] for line in server.stderr if (address_match := re.search(r"http://\S+", line)))
        reading = threading.Thread(target=lambda: log.extend(server.stderr or ()))
        reading.start()
        fuzz = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
        fuzz += [f"{address}/openapi.json", "--checks", CHECKS, "--max-examples", str(options.max_examples)]
        fuzz += ["--request-timeout", "60"]  # seconds; a busy machine is no error of the server
        fuzz += ["--phases", "examples,coverage,fuzzing", "--seed", str(options.seed), "--generation-database", "none"]
        code = subprocess.run(fuzz).returncode
        server.terminate()
        ended = server.wait(60)
        reading.join()
    statuses = [match[1] for line in log if (match := re.match(r"\S+ \S+ (\d{3}) ", line))]
    print({status: statuses.count(status) for status in sorted(set(statuses))}, f"exit code of the server: {ended}")
    return code or ended or any("Traceback" in line or " in a request:" in line for line in log)


if __name__ == "__main__":
    sys.exit(main())
