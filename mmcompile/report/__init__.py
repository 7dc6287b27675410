"""The report of a run: `report.json` for programs, `report.html` and the terminal for people.

The data types live in `model`, figures derived from them in `summary`; `terminal` and `html`
(with `plots`) only show them. docs/report.md documents every field.
"""
