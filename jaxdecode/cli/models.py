"""`jaxdecode models`: the short names."""

import dataclasses

from jaxdecode.cli.common import AsJson, Debug, print_json, print_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that have a short name.

    A model is fetched on its first use and kept in the user's cache folder.
    """

    json: AsJson = False
    debug: Debug = False

    def run(self) -> int:
        """Executes the command; returns the exit code."""
        from jaxdecode.convert.catalog import model_entry, model_names
        from jaxdecode.convert.download import is_cached

        entries = [model_entry(name) for name in model_names()]
        rows = [
            {
                "name": entry.name,
                "description": entry.description,
                "num_bytes": entry.bytes,
                "licence": entry.licence,
                "terms": entry.terms,
                "cached": is_cached(entry),
            }
            for entry in entries
        ]
        if self.json:
            print_json(rows)
            return 0
        print_table(
            ("NAME", "DOWNLOAD", "CACHED", "LICENCE", "DESCRIPTION", "TERMS"),
            [
                (
                    row["name"],
                    f"{row['num_bytes'] / 1e6:.0f} MB",
                    "yes" if row["cached"] else "no",
                    row["licence"],
                    row["description"],
                    row["terms"] or "-",
                )
                for row in rows
            ],
        )
        return 0
