"""References as people type them, and which file of a repository they mean."""

import pytest
from slm_edge.edge.errors import InputError
from slm_edge.edge.hub.listing import HubFile, Listing
from slm_edge.edge.hub.quants import chosen_files, parts_of, quant_of
from slm_edge.edge.hub.reference import Reference, parse


def hub(text, repo="org/Tiny-GGUF", **more):
    return Reference("hub", text, repo, **more)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:org/Tiny-GGUF", hub("hf:org/Tiny-GGUF")),
        ("hf://org/Tiny-GGUF", hub("hf:org/Tiny-GGUF")),
        ("hf.co/org/Tiny-GGUF", hub("hf:org/Tiny-GGUF")),
        ("huggingface.co/org/Tiny-GGUF", hub("hf:org/Tiny-GGUF")),
        ("https://huggingface.co/org/Tiny-GGUF/", hub("hf:org/Tiny-GGUF")),
        ("https://hf.co/org/Tiny-GGUF?show=1", hub("hf:org/Tiny-GGUF")),
        ("https://huggingface.co/org/Tiny-GGUF/tree/main", hub("hf:org/Tiny-GGUF")),
        ("hf.co/org/Tiny-GGUF:latest", hub("hf:org/Tiny-GGUF")),
        ("hf.co/org/Tiny-GGUF:Q4_K_M", hub("hf:org/Tiny-GGUF:Q4_K_M", quant="Q4_K_M")),
        ("hf:org/Tiny-GGUF:q8_0@v1", hub("hf:org/Tiny-GGUF:q8_0@v1", quant="q8_0", revision="v1")),
        ("hf:org/Tiny-GGUF@refs/pr/1", hub("hf:org/Tiny-GGUF@refs/pr/1", revision="refs/pr/1")),
        ("hf:org/Tiny-GGUF/sub/t.gguf", hub("hf:org/Tiny-GGUF/sub/t.gguf", file="sub/t.gguf")),
        ("hub:org/Tiny-GGUF/t.gguf@v1", hub("hf:org/Tiny-GGUF/t.gguf@v1", file="t.gguf", revision="v1")),
        (
            "https://huggingface.co/org/Tiny-GGUF/resolve/main/t.gguf?download=true",
            hub("hf:org/Tiny-GGUF/t.gguf", file="t.gguf"),
        ),
        (
            "https://huggingface.co/org/Tiny-GGUF/blob/v1/a%20b.gguf",
            hub("hf:org/Tiny-GGUF/a b.gguf@v1", file="a b.gguf", revision="v1"),
        ),
        ("starter", Reference("starter", "starter")),
        ("model.gguf", Reference("file", "model.gguf")),
        ("my-pack", Reference("name", "my-pack")),
        ("org/Tiny-GGUF", Reference("name", "org/Tiny-GGUF")),
        ("https://host:8443/a/pack.json", Reference("address", "https://host:8443/a/pack.json")),
        ("http://host/pack.json", Reference("address", "http://host/pack.json")),
    ],
)
def test_what_is_meant(text, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse(text)
    assert found == meant
    if meant.kind == "hub":
        assert parse(found.text) == found, "what is kept names the same"


def test_what_lies_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("starter", "hf.co/org/x"):
        (tmp_path / name).mkdir(parents=True)
        assert parse(name).kind == "folder"
    (tmp_path / "weights").write_bytes(b"GGUF")
    assert parse("weights").kind == "file"


def test_another_endpoint_is_the_hub_too(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/hub/")
    assert parse("http://127.0.0.1:9/hub/org/tiny/resolve/main/t.gguf").text == "hf:org/tiny/t.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf:org",
        "hf:org/a/../b.gguf",
        "hf:../x",
        "hf:org/x:Q4/../..",
        "hf:org/x/t.gguf:Q4",
        "ftp://host/pack.json",
        "file:///etc/pack.json",
        "https:///pack.json",
        "https://host/model.gguf",
        "https://host/pack.json?token=secret",
        "https://me:secret@host/pack.json",
        "https://[::1/pack.json",
        "https://huggingface.co/datasets/a/b",
        "hf:a/b@",
        "a\0b",
    ],
)
def test_what_is_no_reference(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert "secret@" not in caught.value.message


def listing(*paths):
    return Listing("org/x", "c" * 40, tuple(HubFile(path, 1, "a" * 64, "b" * 40) for path in paths))


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen2.5-0.5B-Instruct.Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_0.gguf", "Q4_0"),
        ("Llama-3.2-1B-Instruct-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Q5_K_S/m-00001-of-00002.gguf", "Q5_K_S"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m.f16.gguf", "F16"),
        ("model-BF16-00001-of-00003.gguf", "BF16"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("SmolLM2-135M.gguf", None),
        ("Q4Team.gguf", None),
    ],
)
def test_quantisations_by_names(path, quant):
    assert quant_of(path) == quant


MANY = listing(
    *(f"m.{quant}.gguf" for quant in ("Q2_K", "Q4_K_M", "Q8_0")), "mmproj-m-f16.gguf", "m.imatrix.gguf", "README.md"
)
SPLIT = listing("Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q4_0.gguf")


@pytest.mark.parametrize(
    ("here", "quant", "files"),
    [
        (MANY, None, ["m.Q4_K_M.gguf"]),
        (MANY, "q8_0", ["m.Q8_0.gguf"]),
        (listing("only.gguf", "README.md"), None, ["only.gguf"]),
        (SPLIT, "Q8_0", ["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"]),
        (SPLIT, None, ["m-Q4_0.gguf"]),
        (listing("m-UD-Q4_K_XL.gguf", "m-Q4_0.gguf"), "Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        (listing("m-special.gguf", "m-other.gguf"), "special", ["m-special.gguf"]),
    ],
)
def test_the_file_that_is_meant(here, quant, files):
    assert chosen_files(here, quant) == files


@pytest.mark.parametrize(
    ("here", "quant", "words"),
    [
        (MANY, "Q5_0", "holds no GGUF file of Q5_0"),
        (listing("a.gguf", "b.gguf"), None, "several"),
        (listing("a-Q4_0.gguf", "b-Q4_0.gguf"), "Q4_0", "several"),
        (listing("m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"), None, "2 of the 3 parts"),
    ],
)
def test_what_cannot_be_chosen_is_listed(here, quant, words):
    with pytest.raises(InputError, match=words):
        chosen_files(here, quant)


def test_a_part_stands_for_all():
    assert len(parts_of(SPLIT, "Q8_0/m-Q8_0-00002-of-00002.gguf")) == 2
