from util.evaluation.pictures import remove_pictures


def test_the_pictures_of_one_test_are_removed(tmp_path):
    removed = ["episode-1shot-0.png", "worst-1shot-19.png", "contact-1shot.png"]
    kept = [
        "episode-1shot-bbox-0.png",
        "worst-5shot-0.png",
        "contact-1shot-meta.png",
        "test-1shot-best.json",
    ]
    for name in (*removed, *kept):
        (tmp_path / name).touch()
    remove_pictures(tmp_path, "1shot")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_pictures(tmp_path / "no folder", "1shot")
