"""Cases of the API and the command line; each function judges one row of shared/cases/api/README.md."""

import hashlib
import socket
from urllib.parse import urlsplit

import httpx

from benchmarks.case_table import (
    GENERATE,
    Bench,
    Cases,
    Wrong,
    describe,
    input_json,
    input_path,
    mean_difference,
    read_pixels,
    require,
)
from benchmarks.checkout import ServerFailed

CASES = Cases()
GET_PATHS = (
    *("/", "/live", "/ready", "/models", "/key"),
    *(f"/user/{page}" for page in ("subscription", "information", "priority", "keystore", "data")),
)
APP_ORIGINS = ("tauri://localhost", "chrome-extension://abcdefghijklmnop", "app://obsidian.md")
BOTH_FAMILIES = (("--host", "::"), ("--host", "*"), ("--host", "::,0.0.0.0"), ("--host", "127.0.0.1,::1"))
"""Spellings by which a server might listen on IPv4 and IPv6; the README asks only for some setting."""


@CASES.add("size_float.json", "200")
def judge_float(bench: Bench) -> str:
    pixels = read_pixels(bench.post(GENERATE, input_json(bench, "size_float.json")))
    return f"200, {pixels.shape[1]}x{pixels.shape[0]}"


def judge_image_text(bench: Bench, name: str, plain: str) -> str:
    """Require that a request draws what it draws with `plain`, the image in plain Base64."""
    body = input_json(bench, name)
    drawn = read_pixels(bench.post(GENERATE, body))
    expected = read_pixels(bench.post(GENERATE, body | {"parameters": body["parameters"] | {"image": plain}}))
    require((drawn == expected).all(), "200, but another picture than from plain Base64")
    body["parameters"].pop("image")
    alone = read_pixels(bench.post(GENERATE, body))
    is_used = mean_difference(drawn, alone) > 0
    require(is_used, "200, but the image is not used")
    return "200, drawn on from the image"


@CASES.add("uri_octet_stream.json", "200, drawn on from the picture")
def judge_octets(bench: Bench) -> str:
    image = input_json(bench, "uri_octet_stream.json")["parameters"]["image"]
    return judge_image_text(bench, "uri_octet_stream.json", image.partition(",")[2])


@CASES.add("uri_no_type.json", "200, drawn on from the picture")
def judge_no_type(bench: Bench) -> str:
    image = input_json(bench, "uri_no_type.json")["parameters"]["image"]
    return judge_image_text(bench, "uri_no_type.json", image.partition(",")[2])


@CASES.add("base64_urlsafe.json", "200, - and _ for + and /")
def judge_urlsafe(bench: Bench) -> str:
    image = input_json(bench, "base64_urlsafe.json")["parameters"]["image"]
    return judge_image_text(bench, "base64_urlsafe.json", image.replace("-", "+").replace("_", "/"))


def exchange(address: str, request: bytes) -> tuple[int, bytes, bytes]:
    """Send raw bytes that ask to close; return status, headers in lower case and body."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(maxsplit=2)[1]), head.lower(), body


@CASES.add(
    "requests.http", "HEAD 200 without body on every GET path; // drawn; preflight allows what it asks for"
)
def judge_requests(bench: Bench) -> str:
    address = bench.server(NAIAD_API_ORIGINS="http://localhost:3000")
    texts = input_path(bench, "requests.http").read_text().replace("\r\n", "\n").split("###\n")
    head, post, preflight = (text.replace("\n", "\r\n").encode() for text in texts)
    head, post, preflight = (
        head.strip() + b"\r\n\r\n",
        post.removesuffix(b"\r\n"),
        preflight.strip() + b"\r\n\r\n",
    )
    for path in GET_PATHS:
        status, _, body = exchange(address, head.replace(b"/live", path.encode()))
        require((status, body) == (200, b""), f"HEAD {path}: {status}, {len(body)} bytes of body")
    status, _, body = exchange(address, post)
    require(status == 200, f"POST //ai/generate-image: {status} {body[:60].decode(errors='replace')}")
    status, headers, _ = exchange(address, preflight)
    allowed = next(
        (line for line in headers.split(b"\r\n") if line.startswith(b"access-control-allow-headers")), b""
    )
    require(status < 300, f"preflight: {status}")
    require(
        b"x-requested-with" in allowed or b"*" in allowed, f"preflight: {allowed.decode() or 'no headers'}"
    )
    return "HEAD 200, // drawn, preflight allowed"


@CASES.add("refused_large.py", "the refusal reaches the client, 15 of 15: 403, 404, 401")
def judge_refused(bench: Bench) -> str:
    demo = bench.server()
    runs = (
        (demo, "403", "Origin:https://evil.example"),
        (demo, "404", "/ai/nothing"),
        (bench.server(NAIAD_TOKEN="correct-horse"), "401", "Authorization:Bearer wrong"),
    )
    script, seen = input_path(bench, "refused_large.py").read_text(), []
    for arguments in runs:
        done = bench.checkout.run_python(script, *arguments)
        seen.append(done.output.strip().splitlines()[-1] if done.output else done.refusal)
        require(done.status == 0, f"{arguments[1]}: {seen[-1]}")
    return "15 of 15, three times"


@CASES.add("idle.py", "160 of 160")
def judge_idle(bench: Bench) -> str:
    address = bench.server()
    done = bench.checkout.run_python(input_path(bench, "idle.py").read_text(), urlsplit(address).netloc)
    require(done.status == 0, done.output.strip() or done.refusal)
    return done.output.strip()


@CASES.add("kubernetes.env", "starts on 4242; NAIAD_PROT stays refused")
def judge_kubernetes(bench: Bench) -> str:
    variables = dict(line.split("=", 1) for line in input_path(bench, "kubernetes.env").read_text().split())
    typo = bench.checkout.run_naiad("serve", "--demo", variables={"NAIAD_PROT": "1"})
    require(typo.status == 2 and "NAIAD_PORT" in typo.refusal, f"NAIAD_PROT: {typo.status} {typo.refusal}")
    with socket.socket() as probe:
        is_busy = probe.connect_ex(("127.0.0.1", 4242)) == 0
    if is_busy:  # the refusal then names the port that it would listen on
        done = bench.checkout.run_naiad("serve", "--demo", variables=variables)
        require("port = 4242" in done.refusal, done.refusal)
        return "4242 (in use here)"
    with bench.checkout.serve("--demo", port=4242, variables=variables):
        return "ready on 4242"


@CASES.add("NAIAD_API_ORIGINS", "tauri, chrome-extension and app origins accepted, and may send")
def judge_origins(bench: Bench) -> str:
    with bench.checkout.serve("--demo", variables={"NAIAD_API_ORIGINS": ",".join(APP_ORIGINS)}) as address:
        for origin in APP_ORIGINS:
            body = input_json(bench, "size_float.json")
            body["parameters"] |= {"width": 64, "height": 64, "steps": 1, "seed": 7, "n_samples": 1}
            response = bench.post(GENERATE, body, server=address, Origin=origin)
            require(response.status_code == 200, f"{origin}: {describe(response)}")
            allowed = response.headers.get("access-control-allow-origin")
            require(allowed == origin, f"{origin}: Access-Control-Allow-Origin is {allowed}")
    return "all three"


@CASES.add("inspect under cp1252", "status 0 and the whole report")
def judge_code_page(bench: Bench) -> str:
    report = bench.checkout.folder / "out.txt"
    done = bench.checkout.run_naiad(
        "inspect", input_path(bench, "japanese.png"), stdout=report, variables={"PYTHONIOENCODING": "cp1252"}
    )
    require(done.status == 0, f"{done.status} {done.refusal}")
    text = report.read_text("cp1252")
    for part in ("128 x 128", "Description: 1girl, ", "Software: NovelAI", "seed: 7", "uc: ", "not signed"):
        require(part in text, f"{part!r} is missing from the report")
    return "0, whole"


@CASES.add("generate -o missing/x.png", "the folder is made, or refused before it draws")
def judge_missing_folder(bench: Bench) -> str:
    done = bench.checkout.run_naiad(
        "generate", "cat", "--demo", "-o", "missing/x.png", "--steps", 1, "--size", "64x64"
    )
    if done.status == 0:
        require((bench.checkout.folder / "missing/x.png").exists(), "status 0 without the file")
        return "made"
    require(not done.has_traceback, f"{done.status}, a traceback: {done.refusal}")
    require("generating" not in done.output + done.error, f"refused after drawing: {done.refusal}")
    return f"{done.status} {done.refusal}"


@CASES.add("generate twice", "the first out.png is still there")
def judge_twice(bench: Bench) -> str:
    first, arguments = (
        bench.checkout.folder / "out.png",
        ("generate", "cat", "--demo", "--steps", 1, "--size", "64x64"),
    )
    done = bench.checkout.run_naiad(*arguments, "--seed", 1)
    require(done.status == 0 and first.exists(), f"the first: {done.refusal}")
    digest = hashlib.sha256(first.read_bytes()).digest()
    done = bench.checkout.run_naiad(*arguments, "--seed", 2)
    require(hashlib.sha256(first.read_bytes()).digest() == digest, "overwritten")
    require(not done.has_traceback, f"a traceback: {done.refusal}")
    return f"kept; the second: {done.status} {done.refusal if done.status else done.output.strip()}"


@CASES.add("serve --host ::", "some setting by which [::1] and 127.0.0.1 answer")
def judge_both_families(bench: Bench) -> str:
    seen: list[str] = []
    for arguments in BOTH_FAMILIES:
        try:
            with bench.checkout.serve("--demo", *arguments) as address:
                port = urlsplit(address).port
                for host in ("127.0.0.1", "[::1]"):
                    httpx.get(f"http://{host}:{port}/live", trust_env=False).raise_for_status()
                return f"both with {' '.join(arguments)}"
        except (ServerFailed, httpx.HTTPError) as error:
            seen.append(f"{arguments[1]}: {error}")
    raise Wrong("; ".join(seen))
