"""Wrong, hostile and unusual requests to a server process: how each is answered, and that the server goes on.

Numbers are those of the list of bad inputs in the design's notes on peers; sizes and ranges are the design's. Numbers
from 34 on, about uploaded images, are in test_bad_pictures.py; timeouts are in test_protocol.py.
"""

import gzip
import http.client
import io
import json
import re
import socket
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image
from server_process import start_server

GENERATE = "/ai/generate-image"
SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 7}
GOOD = {"input": "1girl", "model": "nai-diffusion-3", "parameters": SMALL}
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20
VERIFY = False  # no TLS is used, and httpx would read all certificates for every request


def post(server, content, headers=(), method="POST", path=GENERATE):
    """Send a request; content that is neither text nor bytes is sent as JSON."""
    raw = content if isinstance(content, str | bytes) else json.dumps(content)
    has_type = any(name == "Content-Type" for name, _ in headers)
    sent = [*headers] if has_type else [*JSON.items(), *headers]
    return httpx.request(method, server + path, content=raw, headers=sent, timeout=60, verify=VERIFY)


def read_image(response):
    """The first image in a ZIP."""
    return Image.open(io.BytesIO(zipfile.ZipFile(io.BytesIO(response.content)).read("image_0.png")))


def read_pixels(response):
    return np.asarray(read_image(response).convert("RGB"))


def read_message(response, status):
    """The message of an error, which is in the envelope and has no text of a library, path or memory address."""
    envelope = json.loads(response.content)
    assert set(envelope) == {"statusCode", "message"}
    assert envelope["statusCode"] == status
    assert len(response.content) < 700
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
    assert not re.search(
        r"pydantic|starlette|Traceback|\.py\b|site-packages|/tmp|/home|0x[0-9a-f]{6}", envelope["message"]
    )
    return envelope["message"]


@pytest.fixture(scope="module")
def reference(server):
    """Pixels that the server generates before all these requests."""
    return read_pixels(post(server, GOOD))


@pytest.fixture(autouse=True)
def stays_alive(server, reference):
    yield
    assert httpx.get(f"{server}/live", timeout=60, verify=VERIFY).json() == {"status": "alive"}


def case(name, sent, status, expected, headers=()):
    return pytest.param(sent, status, expected, headers, id=name)


def with_parameters(name, status, expected, **parameters):
    """A request with these parameters."""
    return case(name, GOOD | {"parameters": SMALL | parameters}, status, expected)


def with_keys(name, status, expected, **top):
    """A request with these top-level keys."""
    return case(name, GOOD | top, status, expected)


def with_text(name, text, status, expected):
    """A request whose JSON has `text` in the place of `"seed": 7`."""
    return case(name, json.dumps(GOOD).replace('"seed": 7', text), status, expected)


SIDE = "is not a multiple of 32 from 64 to 49152"
PARTS = b'--x\r\nContent-Disposition: form-data; name="p"; filename="p"\r\n\r\n\r\n' * 10_000 + b"--x--\r\n"
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="request"; filename="blob"\r\nContent-Type: application/json\r\n\r\n'
    + json.dumps(GOOD).encode() + b"\r\n--x--\r\n"
)  # fmt: skip
MULTIPART = [("Content-Type", "multipart/form-data; boundary=x")]


CASES = [
    # form of the request; for a 200, the Comment's values are expected, else part of the message
    case("1 empty", b"", 400, "body: is empty; send a JSON object"),
    case("2 not JSON", b"hello", 400, "body: is not JSON in UTF-8"),
    case("2 cut short", json.dumps(GOOD)[:-1], 400, "body: is not JSON in UTF-8"),
    case("3 an array", [GOOD], 400, "body: must be a JSON object"),
    case("3 a number", b"7", 400, "body: must be a JSON object"),
    case("3 a text", b'"a"', 400, "body: must be a JSON object"),
    case("3 null", b"null", 400, "body: must be a JSON object"),
    case("4 deep arrays", b"[" * MIB, 400, "nested too deeply"),
    case("4 deep objects", b'{"a":' * 200_000, 400, "nested too deeply"),
    case("4 deep in an unknown key", b'{"parameters": {"x":' + b"[" * 900_000, 400, "nested too deeply"),
    with_text("5 a key twice", '"seed": 8, "seed": 9', 200, {"seed": 9}),
    with_text("6 NaN", '"scale": NaN', 400, "parameters.scale: nan is not a number from 0 to 50"),
    with_text("6 Infinity", '"scale": Infinity', 400, "parameters.scale: inf is not a number from 0 to 50"),
    with_text("6 -Infinity", '"skip_cfg_above_sigma": -Infinity', 400, "parameters.skip_cfg_above_sigma: -inf is not"),
    with_text("6 1e400", '"seed": 1e400', 400, "parameters.seed: inf is not a whole number"),
    with_text("6 an int of 5000 digits", f'"seed": {"9" * 5000}', 400, "body: is not JSON"),
    with_text("6 NaN in an unused field", '"strength": NaN, "seed": 9', 200, {"seed": 9}),
    case("7 unknown keys", GOOD | {"v": 5, "": [], "x" * 9999: None, "parameters": SMALL | {"ui": {"a": [1]}}}, 200, {"seed": 7}),
    case("8 no parameters", {"input": "a"}, 400, "parameters: is required"),
    case("8 null", GOOD | {"parameters": None}, 400, "parameters: null is not an object"),
    case("8 an array", GOOD | {"parameters": []}, 400, "parameters: an array is not an object"),
    case("9 not UTF-8", b'{"input": "\xff", "parameters": {}}', 400, "body: is not JSON in UTF-8"),
    with_keys("9 a lone surrogate, NUL", 200, {"prompt": "ab", "uc": ""}, input="a\ud83d\0b"),
    with_parameters("9 in the negative", 200, {"uc": "ab"}, negative_prompt="a\udfff\0b"),
    with_keys("9 in a name", 400, r"model: '\ud800' is not a model id", model="\ud800"),
    case("10 text/plain", GOOD, 415, "Content-Type: 'text/plain' is not", [("Content-Type", "text/plain")]),
    case("10 a form", b"input=a", 415, "is not application/json", [("Content-Type", "application/x-www-form-urlencoded")]),
    case("10 no type", GOOD, 415, "Content-Type: '' is not application/json", [("Content-Type", "")]),
    case("11 multipart", FORM, 200, {"seed": 7}, MULTIPART),
    case("11 10,000 parts", PARTS, 413, "the body has more than 64 parts", MULTIPART),
    case("11 no boundary", FORM, 400, "names no boundary", [("Content-Type", "multipart/form-data")]),
    case("11 no request", FORM.replace(b"request", b"rubbish"), 400, "request: the part that must hold the JSON is missing", MULTIPART),
    case("15 compressed", gzip.compress(b" " * 10**7), 415, "Content-Encoding: 'gzip' is not read", [("Content-Encoding", "gzip")]),
    case("16 10,000 headers", GOOD, 431, "the headers are too large", [("a", "b")] * 10_000),
    case("16 a header of 64 kB", GOOD, 431, "the headers are too large", [("Cookie", "c" * 65_536)]),
    # sizes
    with_parameters("18 width 0", 400, f"parameters.width: 0 {SIDE}", width=0),
    with_parameters("18 negative", 400, f"parameters.height: -64 {SIDE}", height=-64),
    with_parameters("18 a fraction", 400, f"parameters.width: 64.5 {SIDE}", width=64.5),
    with_parameters("18 a text", 400, f"parameters.width: '832' {SIDE}", width="832"),
    with_parameters("18 63", 400, f"parameters.width: 63 {SIDE}", width=63),
    with_parameters("18 65", 400, f"parameters.height: 65 {SIDE}", height=65),
    with_parameters("18 32", 400, f"parameters.width: 32 {SIDE}", width=32),
    with_parameters("18 true", 400, f"parameters.width: true {SIDE}", width=True),
    with_parameters("18 an array", 400, f"parameters.width: an array {SIDE}", width=[64]),
    with_parameters("18 96 is valid", 200, {"width": 96, "height": 64}, width=96),
    with_parameters("19 65536x64", 400, f"parameters.width: 65536 {SIDE}", width=65_536),
    with_parameters("19 2048x2048", 400, "parameters.width: 2048x2048 is 4194304 pixels; at most 3145728", width=2048, height=2048),
    with_parameters("19 49152x96", 400, "49152x96 is 4718592 pixels; at most 3145728", width=49_152, height=96),
    with_parameters("19 1e18", 400, f"parameters.width: 1000000000000000000 {SIDE}", width=10**18),
    # numbers
    with_parameters("20 steps 0", 400, "parameters.steps: 0 is not a whole number from 1 to 50", steps=0),
    with_parameters("20 steps -1", 400, "parameters.steps: -1 is not", steps=-1),
    with_parameters("20 steps 51", 400, "parameters.steps: 51 is not", steps=51),
    with_parameters("20 steps 1e9", 400, "parameters.steps: 1000000000 is not", steps=10**9),
    with_parameters("20 steps 1.5", 400, "parameters.steps: 1.5 is not", steps=1.5),
    with_parameters("21 samples 0", 400, "parameters.n_samples: 0 is not a whole number from 1 to 8", n_samples=0),
    with_parameters("21 samples 1000", 400, "parameters.n_samples: 1000 is not", n_samples=1000),
    with_parameters("21 for the area", 400, "parameters.n_samples: 5 images of 1024x1024; at most 4", n_samples=5, width=1024, height=1024),
    with_parameters("22 scale -1", 400, "parameters.scale: -1 is not a number from 0 to 50", scale=-1),
    with_parameters("22 scale 50.5", 400, "parameters.scale: 50.5 is not", scale=50.5),
    with_parameters("22 scale 1e9", 400, "parameters.scale: 1000000000.0 is not", scale=1e9),
    with_parameters("22 scale 0", 200, {"scale": 0.0}, scale=0),
    with_parameters("23 rescale -0.1", 400, "parameters.cfg_rescale: -0.1 is not a number from 0 to 1", cfg_rescale=-0.1),
    with_parameters("23 rescale 1.1", 400, "parameters.cfg_rescale: 1.1 is not", cfg_rescale=1.1),
    with_parameters("24 seed -1", 200, {"seed": 4294967295}, seed=-1),
    with_parameters("24 seed 2^32", 200, {}, seed=2**32),
    with_parameters("24 seed 2^64 + 5", 200, {"seed": 5}, seed=2**64 + 5),
    with_parameters("24 seed 1.5", 400, "parameters.seed: 1.5 is not a whole number", seed=1.5),
    with_parameters("24 seed '7'", 200, {"seed": 7}, seed="7"),
    with_parameters("24 seed 'x'", 400, "parameters.seed: 'x' is not a whole number", seed="x"),
    with_parameters("24 seed true", 400, "parameters.seed: true is not a whole number", seed=True),
    # names
    with_parameters("25 sampler", 400, "parameters.sampler: 'k_eular' is not a sampler (did you mean 'k_euler'?); known: ", sampler="k_eular"),
    with_parameters("25 schedule", 400, "(did you mean 'karras'?); known: native, ", noise_schedule="karas"),
    with_parameters("25 a path", 400, "parameters.sampler: '../../etc/passwd' is not", sampler="../../etc/passwd"),
    with_parameters("25 ddim_v3, karras", 200, {"noise_schedule": "native"}, sampler="ddim_v3", noise_schedule="karras"),
    with_parameters("25 Euler a, karras", 200, {"noise_schedule": "karras"}, sampler="k_euler_ancestral", noise_schedule="karras", steps=2),
    with_keys("26 another model", 200, {"seed": 7}, model="no-such-model"),
    with_keys("26 a long one", 400, "model: 'xxx", model="x" * 201),
    with_keys("26 a number", 400, "model: 3 is not a model id of at most 200 characters", model=3),
    # img2img, infill and vibe transfer
    with_keys("27 infill without an image", 400, "parameters.mask: infill needs an image and a mask", action="infill"),
    with_keys("27 img2img without an image", 400, "parameters.image: img2img needs an image", action="img2img"),
    with_keys("27 an unknown action", 400, "action: 'upscale' is not generate, img2img or infill", action="upscale"),
    with_parameters("35 a truncated image", 400, "parameters.image: ", image="iVBORw0KGgo="),
    with_parameters("28 strength and noise unused", 200, {"seed": 7}, strength=7, noise=-1),
    case("28 strength used", GOOD | {"action": "img2img", "parameters": SMALL | {"image": "iVBORw0KGgo=", "strength": 7}},
         400, "parameters.strength: 7 is not a number from 0 to 1"),
    with_parameters("33 vibe", 400, "remove the reference images; the model has no image adapter", reference_image_multiple=["iVBORw0KGgo="]),
    case("33 vibe and infill", GOOD | {"action": "infill", "parameters": SMALL | {
        "image": "iVBORw0KGgo=", "mask": "iVBORw0KGgo=", "reference_image": "iVBORw0KGgo="}}, 400, "has no image adapter"),
    # texts
    with_keys("29 1 MB", 400, "input: 'xxx", input="x" * MIB),
    with_keys("29 1 MB of tokens", 400, "is not a text of at most 40000 characters", input="a " * (MIB // 2)),
    with_keys("29 many tokens", 200, {"prompt": "a " * 19_999}, input="a " * 19_999),
    with_keys("29 one word", 200, {"prompt": "x" * 40_000}, input="x" * 40_000),
    with_keys("29 many emoji", 200, {"seed": 7}, input="\U0001f600" * 40_000),
    with_parameters("29 a negative of 1 MB", 400, "parameters.negative_prompt: 'xxx", negative_prompt="x" * MIB),
    with_keys("30 39,990 {", 200, {"seed": 7}, input="{" * 39_990 + "cat"),
    with_keys("30 39,990 }", 200, {"seed": 7}, input="}" * 39_990 + "cat"),
    with_keys("30 39,990 [", 200, {"seed": 7}, input="[" * 39_990 + "cat"),
    with_keys("30 39,990 ]", 200, {"seed": 7}, input="]" * 39_990 + "cat"),
    with_keys("30 { too many", 400, "input: '{{{", input="{" * 10**5),
    with_keys("30 unbalanced", 200, {"prompt": "}{cat]]{"}, input="}{cat]]{"),
    with_keys("30 empty", 200, {"prompt": "{}, [], ()"}, input="{}, [], ()"),
    with_keys("30 ::", 200, {"prompt": "::, 1.5::cat::, ::"}, input="::, 1.5::cat::, ::"),
    with_keys("30 1e308", 200, {"seed": 7}, input="cat:1e308, 1e308::dog::, {cat:9" + "9" * 400 + "}"),
    with_keys("30 a huge weight", 200, {"seed": 7}, input="cat|dog:9" + "9" * 200),
    with_keys("30 an infinite weight", 200, {"seed": 7}, input="cat|dog:9" + "9" * 400),
    with_keys("30 zero weights", 400, "every part of the '|' mix has weight 0", input="cat:0|dog:0"),
    with_keys("31 empty", 200, {"prompt": ""}, input=""),
    with_keys("31 null", 200, {"prompt": ""}, input=None),
    with_keys("31 spaces", 200, {"seed": 7}, input=" \n\t"),
    with_keys("31 a number", 400, "input: 7 is not a text", input=7),
    with_keys("32 files", 200, {"prompt": "<lora:../../x:1>, __wildcard__, embedding:/etc/passwd"},
          input="<lora:../../x:1>, __wildcard__, embedding:/etc/passwd"),
    with_keys("32 a mix", 200, {"prompt": "cat|dog:0.5"}, input="cat|dog:0.5"),
    with_keys("32 a mix of empty texts", 400, "every part of the '|' mix has weight 0", input="|||"),
    with_keys("32 a mix of 2000", 400, "input", input="a|" * 2000),
    with_keys("32 a template", 200, {"prompt": "{{7*7}} ${jndi:x} %s %n"}, input="{{7*7}} ${jndi:x} %s %n"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "expected", "headers"), CASES)
def test_bad_inputs(server, sent, status, expected, headers):
    response = post(server, sent, headers)
    assert response.status_code == status, response.content[:300]
    if status != 200:
        assert expected in read_message(response, status)
        return
    image = read_image(response)
    comment = json.loads(image.info["Comment"])
    assert {key: comment[key] for key in expected} == expected
    assert 0 < comment["seed"] < 2**32
    assert image.size == (comment["width"], comment["height"])


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", GENERATE, 405, "GET: this path takes POST"),
        ("PUT", GENERATE, 405, "PUT: this path takes POST"),
        ("DELETE", "/models", 405, "DELETE: this path takes GET, HEAD"),
        ("POST", "/live", 405, "POST: this path takes GET, HEAD"),
        ("POST", "/ai/nothing", 404, "POST '/ai/nothing': no such path"),
        ("GET", "/..%2f..%2fetc/passwd", 404, "GET '/../../etc/passwd': no such path"),
        ("GET", "/redoc", 404, "no such path"),
    ],
)
def test_17_other_methods_and_paths(server, method, path, status, expected):
    assert expected in read_message(post(server, b"", method=method, path=path), status)


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        pytest.param([*MULTIPART, ("Content-Length", "500000000")], [FORM], id="11 a field of 500 MB"),
        pytest.param(
            [*JSON.items(), ("Content-Length", str(64 * MIB + 1))], [], id="12 by its declared length"
        ),
        pytest.param([*JSON.items(), ("Transfer-Encoding", "chunked")], [b" " * MIB] * 65, id="13 in chunks"),
    ],
)
def test_a_body_over_the_limit_is_refused_before_its_end_and_the_connection_closed(server, headers, pieces):
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", GENERATE)
    for header in headers:
        connection.putheader(*header)
    connection.endheaders()
    for piece in pieces:
        chunked = ("Transfer-Encoding", "chunked") in headers
        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    response = connection.getresponse()
    assert (response.status, response.headers["connection"]) == (413, "close")
    assert json.loads(response.read())["message"] == "the body is larger than 64 MiB"
    connection.close()


def test_14_slow_clients_do_not_block_others(server, reference):
    address = ("127.0.0.1", int(server.rpartition(":")[2]))
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    slow = [
        head,
        head + "Content-Length: 99\r\n\r\n{",
        head + "Transfer-Encoding: chunked\r\n\r\n" + "1\r\n \r\n" * 999,
    ]
    connections = [socket.create_connection(address) for _ in range(60)]
    try:
        for index, connection in enumerate(connections):
            connection.sendall(slow[index % 3].encode())
        assert np.array_equal(read_pixels(post(server, GOOD)), reference)
    finally:
        [connection.close() for connection in connections]


@pytest.mark.parametrize(
    ("method", "headers", "message"),
    [
        (
            "POST",
            {"Origin": "https://evil.example"},
            "Origin: 'https://evil.example' may not send requests here",
        ),
        ("POST", {"Origin": "null"}, "Origin: 'null' may not send requests here"),
        ("POST", {"Host": "evil.example"}, "Host: 'evil.example' is not a name of this server"),
        ("POST", {"Host": "evil.example", "Origin": "http://evil.example"}, "Host: 'evil.example' is not"),
        ("GET", {"Host": "evil.example"}, "Host: 'evil.example' is not"),
        (
            "OPTIONS",
            {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
            "Origin: 'https://evil",
        ),
        (
            "OPTIONS",
            {"Origin": "https://novelai.net", "Access-Control-Request-Method": "POST"},
            "Origin: 'https://nov",
        ),
    ],
)
def test_foreign_origins_and_hosts_are_refused(server, method, headers, message):
    response = post(server, GOOD, list(headers.items()), method)
    assert message in read_message(response, 403)
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.fixture(scope="module")
def locked(demo_file, tmp_path_factory):
    """A server process that needs a token: its address, its token, the token of an account and the log."""
    folder = tmp_path_factory.mktemp("locked")
    own, account = "pst-" + "a1" * 32, "pst-" + "b2" * 32
    (folder / "tokens.toml").write_text(f'[[account]]\nname = "a"\nkey = "{"k" * 64}"\ntoken = "{account}"\n')
    with start_server(demo_file, folder, tokens=folder / "tokens.toml", token=own) as address:
        yield address, own, account, folder / "log"


LOGIN = "/user/login"


def test_wrong_tokens_and_keys_are_refused_and_never_logged(locked):
    address, own, account, log = locked
    wrong = ["", "x", own[:-1], own + "1", own.upper(), "x" * 10_000, "é" * 68, "пст-猫"]
    sent = [[("Authorization", f"Bearer {token}".strip().encode())] for token in wrong]
    for headers in ([], [("Authorization", own)], [("Authorization", f"Basic {own}")], *sent):
        assert read_message(post(address, GOOD, headers), 401) == "Unauthorized"
        assert read_message(post(address, b"", headers, "GET", "/user/data"), 401) == "Unauthorized"
    for query in ("token", "key", "access_token"):
        assert read_message(post(address, GOOD, path=f"{GENERATE}?{query}={own}"), 401) == "Unauthorized"
    assert read_message(post(address, GOOD, [("Authorization", "Bearer " + "x" * 100_000)]), 431)
    assert read_message(post(address, {"key": own}, path=LOGIN), 401) == "Unauthorized"
    assert post(address, {"key": "k" * 64}, path=LOGIN).json() == {"accessToken": account}
    for token in (own, account):
        allowed = post(address, b"", [("Authorization", f"Bearer {token}")], "GET", "/user/data")
        assert allowed.status_code == 200
    lines = log.read_text()
    assert len(re.findall(r" 401 \d+ ms", lines)) == 2 * 11 + 3 + 1
    assert not [secret for secret in (own, account, "k" * 64, "xxx", "пст") if secret in lines]


def test_afterwards_the_server_generates_the_same_pixels(server, reference):
    assert np.array_equal(read_pixels(post(server, GOOD)), reference)
    assert httpx.get(f"{server}/ready", timeout=60, verify=VERIFY).json() == {"state": "ready", "waiting": 0}
