from tests.tables import rows_of
from util.evaluation.episode_records import EpisodeRecord, write_csv
from util.slices import main


def test_the_command_joins_files(tmp_path, capsys, error_line):
    paths = [tmp_path / f"fold{fold}.csv" for fold in range(2)]
    for fold, path in enumerate(paths):
        write_csv(path, [EpisodeRecord("q", "cat", fold / 2, 0.0, 7, 0.1, 1, 510, ("s",))])
    out = tmp_path / "slices.md"
    main([*map(str, paths), "--out", str(out)])
    assert rows_of(out.read_text())["all"] == ["2", "25.0", "0.0"]
    main([str(paths[1])])
    assert "The 1 episodes" not in (text := capsys.readouterr().out) and "50.0" in text
    assert "none.csv cannot be read" in error_line(main, [str(tmp_path / "none.csv")])
    assert "required: FILE.csv" in error_line(main, [])
