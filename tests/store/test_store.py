"""What the store promises: whole or not at all, damage named, sharing without harm."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from msao_compile.errors import StageError
from msao_compile.store.record import Damage, Record
from msao_compile.store.store import Store

from .requests import flip_a_byte, key

MakeFile = Callable[[str, bytes], Path]


def built(store: Store, file: MakeFile, subject: str = "edge/vision_encoder", data: bytes = b"weights") -> Record:
    outputs = {"graph": file("graph.onnx", b"graph"), "weights": file("graph.onnx.data", data)}
    return store.commit(key(subject), outputs, {"opset": 20})


def test_what_was_committed_is_found_again(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    assert store.lookup(key(), "digest") == done == Store(store.root).peek(key())
    assert store.path(done.outputs["weights"]).read_bytes() == b"weights"
    assert store.path(done.outputs["weights"]).stat().st_mode & 0o777 == 0o444
    assert done.payload == {"opset": 20}


def test_what_was_never_built_is_not_found_and_nothing_is_written(store: Store) -> None:
    assert store.peek(key()) is None
    assert store.lookup(key()) is None
    assert not store.root.exists()


def test_committing_moves_instead_of_copying(store: Store, file: MakeFile) -> None:
    path = file("big", b"x" * 1000)
    inode = path.stat().st_ino
    done = store.commit(key(), {"big": path}, {})
    assert store.path(done.outputs["big"]).stat().st_ino == inode
    assert not path.exists()


def test_a_file_with_a_second_owner_is_copied(store: Store, file: MakeFile) -> None:
    mine = file("mine", b"checkpoint")
    os.link(mine, mine.with_name("link"))
    blob = store.put_file(mine.with_name("link"))
    mine.write_bytes(b"changed by its owner")
    assert store.path(blob).read_bytes() == b"checkpoint"


def test_a_symbolic_link_stores_what_it_points_to(store: Store, file: MakeFile) -> None:
    target = file("mine", b"checkpoint")
    link = target.with_name("link")
    link.symlink_to(target)
    blob = store.put_file(link)
    assert not store.path(blob).is_symlink() and target.read_bytes() == b"checkpoint"


def test_without_move_the_file_stays(store: Store, file: MakeFile) -> None:
    path = file("keep", b"tokenizer")
    store.put_file(path, move=False)
    assert path.read_bytes() == b"tokenizer"


def test_equal_bytes_are_kept_once(store: Store, file: MakeFile) -> None:
    one = built(store, file, "edge/vision_encoder")
    two = built(store, file, "cloud/vision_encoder")
    assert one.outputs == two.outputs
    assert len(list((store.root / "objects").glob("??/*"))) == 2


def test_one_file_may_be_two_outputs(store: Store, file: MakeFile) -> None:
    path = file("both", b"same")
    done = store.commit(key(), {"a": path, "b": path}, {})
    assert done.outputs["a"] == done.outputs["b"]


def test_a_promised_output_that_is_missing_is_named_before_anything_moves(store: Store, file: MakeFile) -> None:
    there = file("there", b"x")
    with pytest.raises(
        StageError, match="stage export promised the output 'gone', but left no file .*nowhere"
    ) as caught:
        store.commit(key(), {"there": there, "gone": there.with_name("nowhere")}, {})
    assert caught.value.exit_code == 3 and there.exists() and store.lookup(key()) is None


def test_a_payload_that_is_not_json_is_refused_before_anything_moves(store: Store, file: MakeFile) -> None:
    there = file("there", b"x")
    with pytest.raises(StageError, match="payload that has no JSON form: value.cosine is nan"):
        store.commit(key(), {"there": there}, {"cosine": float("nan")})
    assert there.exists()


@pytest.mark.parametrize("verify", ["size", "digest"])
def test_a_missing_object_is_damage_and_the_others_stay(store: Store, file: MakeFile, verify: str) -> None:
    done = built(store, file)
    store.path(done.outputs["weights"]).unlink()
    found = store.lookup(key(), "size" if verify == "size" else "digest")
    assert isinstance(found, Damage) and (found.reason, found.output) == ("missing", "weights")
    assert store.path(done.outputs["graph"]).exists()


def test_a_truncated_object_is_named_and_forgotten_alone_and_building_again_heals(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    weights = store.path(done.outputs["weights"])
    os.truncate(weights, 3)
    assert isinstance(store.peek(key()), Damage) and weights.exists()
    found = store.lookup(key())
    assert isinstance(found, Damage)
    assert str(found) == (
        f"output 'weights' of export edge/vision_encoder, object {done.outputs['weights'].sha256} "
        "has 3 bytes where 7 were stored"
    )
    assert not weights.exists() and store.path(done.outputs["graph"]).exists()
    assert built(store, file) == done == store.lookup(key(), "digest")


def test_a_changed_byte_is_found_by_digest_and_named(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    flip_a_byte(store, done.outputs["weights"])
    os.utime(store.path(done.outputs["weights"]))  # as a program that writes to it would
    found = store.lookup(key(), "digest")
    assert isinstance(found, Damage)
    assert (found.reason, found.output, found.sha256) == ("digest", "weights", done.outputs["weights"].sha256)
    assert not store.path(done.outputs["weights"]).exists()


def test_a_changed_byte_under_an_old_date_is_found_by_verify_alone(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    flip_a_byte(store, done.outputs["graph"])
    assert store.lookup(key(), "digest") == done  # documented: three numbers are all it looks at
    (damage,) = store.verify()
    assert (damage.reason, damage.output, damage.subject) == ("digest", "graph", "edge/vision_encoder")
    assert store.lookup(key(), "digest") == done  # verify changes nothing
    assert store.collect({done.digest}).count == 1
    assert isinstance(store.lookup(key()), Damage)
    assert store.path(done.outputs["weights"]).exists()


def test_a_damaged_object_that_no_record_names_is_found_too(store: Store, file: MakeFile) -> None:
    blob = store.put_file(file("alone", b"alone"))
    flip_a_byte(store, blob)
    assert [(damage.sha256, damage.output) for damage in store.verify()] == [(blob.sha256, None)]


def test_verify_of_an_intact_store_reports_nothing(store: Store, file: MakeFile) -> None:
    built(store, file)
    assert store.verify() == []


def test_digest_lookup_reads_again_only_what_changed(
    store: Store, file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = built(store, file)
    os.utime(store.path(done.outputs["graph"]))
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return path.name

    monkeypatch.setattr("msao_compile.store.store.sha256_file", counting)
    store.lookup(key(), "digest")
    store.lookup(key(), "digest")
    assert hashed == [done.outputs["graph"].sha256]


def test_storing_good_bytes_heals_a_damaged_object(store: Store, file: MakeFile) -> None:
    blob = store.put_file(file("one", b"bytes"))
    flip_a_byte(store, blob)
    store.put_file(file("one", b"bytes"))
    assert store.path(blob).read_bytes() == b"bytes"


def test_a_record_with_a_changed_byte_is_damage_and_never_believed(store: Store, file: MakeFile) -> None:
    built(store, file)
    path = store.root / "records" / "export" / f"{key().digest}.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"opset":20', b'"opset":21'))
    found = store.lookup(key())
    assert isinstance(found, Damage) and found.reason == "record"
    assert store.lookup(key()) is None


def test_a_materialised_object_is_the_same_file(store: Store, file: MakeFile, tmp_path: Path) -> None:
    blob = built(store, file).outputs["weights"]
    destination = tmp_path / "deployment" / "modules" / "weights.data"
    for _ in range(2):  # the second finds its own link, which renaming would not replace
        store.materialise(blob, destination)
    assert destination.samefile(store.path(blob))
    assert os.listdir(destination.parent) == ["weights.data"]


def test_materialising_replaces_what_was_there(store: Store, file: MakeFile, tmp_path: Path) -> None:
    blob = built(store, file).outputs["weights"]
    destination = file("old", b"old")
    store.materialise(blob, destination)
    assert destination.read_bytes() == b"weights"


def test_where_linking_is_refused_a_copy_is_made(
    store: Store, file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, destination: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    blob = built(store, file).outputs["weights"]
    monkeypatch.setattr(os, "link", refused)
    store.materialise(blob, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert not (tmp_path / "copy").samefile(store.path(blob))
    assert not list(tmp_path.glob(".*"))


def test_an_object_that_is_gone_cannot_be_materialised(store: Store, file: MakeFile, tmp_path: Path) -> None:
    blob = built(store, file).outputs["weights"]
    store.path(blob).unlink()
    with pytest.raises(StageError, match=f"no longer has object {blob.sha256}: build again"):
        store.materialise(blob, tmp_path / "x")


def test_collection_removes_what_nobody_names(store: Store, file: MakeFile) -> None:
    kept = built(store, file, "edge/vision_encoder")
    gone = built(store, file, "cloud/vision_encoder", b"other weights")
    collected = store.collect({kept.digest})
    assert (collected.count, collected.size_bytes > len(b"other weights")) == (2, True)
    assert store.lookup(kept.key, "digest") == kept
    assert store.lookup(gone.key) is None and not store.path(gone.outputs["weights"]).exists()
    assert store.collect({kept.digest}).count == 0


def test_naming_all_outputs_keeps_their_record(store: Store, file: MakeFile) -> None:
    kept = built(store, file)
    store.collect({blob.sha256 for blob in kept.outputs.values()})
    assert store.lookup(kept.key) == kept


def test_naming_one_output_keeps_that_object_alone(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    store.collect({done.outputs["weights"].sha256})
    assert store.path(done.outputs["weights"]).exists() and not store.path(done.outputs["graph"]).exists()
    assert store.lookup(done.key) is None


def test_bytes_that_a_deployment_shares_do_not_count_as_freed(store: Store, file: MakeFile, tmp_path: Path) -> None:
    blob = store.put_file(file("one", b"bytes"))
    store.materialise(blob, tmp_path / "deployed")
    collected = store.collect(set())
    assert (collected.count, collected.size_bytes) == (1, 0)
    assert (tmp_path / "deployed").read_bytes() == b"bytes"


def test_collection_refuses_while_a_build_runs(store: Store, file: MakeFile) -> None:
    with store.in_use():
        done = built(store, file)
        with pytest.raises(StageError, match="is in use by a build: collect when that has ended"):
            store.collect(set(), wait_seconds=0.1)
    assert store.lookup(done.key) == done
    assert store.collect(set()).count == 3


def test_a_store_that_cannot_be_made_is_one_sentence(file: MakeFile) -> None:
    store = Store(file("not-a-folder", b"") / "store")
    with pytest.raises(StageError, match="opening the store failed in .*Not a directory"), store.in_use():
        pass


def test_a_store_can_be_moved(store: Store, file: MakeFile, tmp_path: Path) -> None:
    done = built(store, file)
    shutil.move(store.root, tmp_path / "elsewhere")
    assert Store(tmp_path / "elsewhere").lookup(key(), "digest") == done


def test_a_request_under_another_name_finds_what_was_made_before(store: Store, file: MakeFile) -> None:
    done = built(store, file)
    fields = {**key().fields, "subject": "renamed/vision_encoder"}
    assert store.peek(key().model_copy(update={"fields": fields})) == done
    assert store.peek(key(weights="other")) is None
