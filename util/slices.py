"""Where the model fails: the episodes of a test by object size and by number of classes.

`python -m util.slices FILE.csv... [--out FILE]` prints the tables of the per-episode files that the
test writes; several files, for instance of the four folds, are taken together.
"""

from collections.abc import Sequence

from util.config import Parser
from util.evaluation.episode_records import read_csv, slice_tables
from util.runtime.errors import exits_on_user_error
from util.runtime.tables import write_or_print


@exits_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(description="Tables of tested episodes by size and classes.")
    parser.add_argument("files", nargs="+", metavar="FILE.csv", help="what the test wrote")
    parser.add_argument("--out", metavar="FILE", help="write the tables there, not to the console")
    options = parser.parse_args(arguments)
    records = [record for path in options.files for record in read_csv(path)]
    write_or_print(options.out, slice_tables(records))


if __name__ == "__main__":
    main()
