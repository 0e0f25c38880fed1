"""The dashboard against Grafana's own types: npm @grafana/schema, by tsc. Literals of enums are written as
their strings in JSON, so `Json` lets a string stand for its enum."""

import json
import subprocess
import tempfile
from pathlib import Path

from common import ROOT
from grafana import dashboard

NODE_MODULES = ROOT / "target/tools/npm/node_modules"
PANELS = {
    "timeseries": ("timeseries", "TimeSeriesPanelCfg_types.gen"),
    "stat": ("stat", "StatPanelCfg_types.gen"),
    "heatmap": ("heatmap", "HeatmapPanelCfg_types.gen"),
    "state-timeline": ("statetimeline", "StateTimelinePanelCfg_types.gen"),
}


def source(board: dict) -> str:
    lines = ["import type { Dashboard, RowPanel } from '@grafana/schema';"]
    for kind, (folder, file) in PANELS.items():
        name = kind.replace("-", "_")
        path = f"@grafana/schema/dist/esm/raw/composable/{folder}/panelcfg/x/{file}"
        lines.append(f"import type * as {name} from '{path}';")
    lines.append(
        "type Json<T> = unknown extends T ? T : T extends string ? `${T}` : T extends number | boolean ? T"
        " : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;"
    )
    # What a data source puts into an annotation is its own affair; live.py asks the queries.
    own = ("expr", "titleFormat", "textFormat")
    marks = [{k: v for k, v in a.items() if k not in own} for a in board["annotations"]["list"]]
    shell = {**board, "panels": [], "annotations": {"list": marks}}
    lines.append(f"const board: Json<Dashboard> = {json.dumps(shell)};")
    for panel in board["panels"]:
        number, kind = panel["id"], panel["type"]
        if kind == "row":
            lines.append(f"const row{number}: Json<RowPanel> = {json.dumps(panel)};")
            continue
        name = kind.replace("-", "_")
        lines.append(
            f"const panel{number}: Json<Exclude<NonNullable<Dashboard['panels']>[number], RowPanel>>"
            f" = {json.dumps(panel)};"
        )
        lines.append(f"const options{number}: Json<{name}.Options> = {json.dumps(panel['options'])};")
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if custom:
            lines.append(f"const custom{number}: Json<{name}.FieldConfig> = {json.dumps(custom)};")
    return "\n".join(lines) + "\n"


def check(deploy: Path) -> list[str]:
    with tempfile.TemporaryDirectory(dir=NODE_MODULES.parent) as work:
        file = Path(work) / "dashboard.ts"
        file.write_text(source(dashboard(deploy)))
        done = subprocess.run(
            [NODE_MODULES / ".bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--types", "",
             "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext", file],
            capture_output=True, text=True, cwd=work,
        )  # fmt: skip
    return (done.stdout + done.stderr).splitlines() if done.returncode else []
