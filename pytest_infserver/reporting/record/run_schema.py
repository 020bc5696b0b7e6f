"""The JSON Schema of run.json: what stands in the record of a run."""

from __future__ import annotations

from typing import Any

from pytest_infserver.reporting.record.recorder import SCHEMA_VERSION

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number", "minimum": 0}
_FLAG = {"type": "boolean"}


def run_schema() -> dict[str, Any]:
    """Return the schema, draft 2020-12.

    Names that end with ``_seconds`` and ``_bytes`` say their unit; all other times are seconds since the epoch. Paths
    are relative to the folder of run.json. null stands for what is not known.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:pytest-infserver:run",
        "title": "A run of pytest with pytest-infserver",
        **_object(
            schema_version={"const": SCHEMA_VERSION},
            pytest_infserver=_TEXT,
            pytest=_TEXT,
            python=_TEXT,
            platform=_TEXT,
            started=_NUMBER,
            ended=_NUMBER,
            exit_status={"type": "integer"},
            workers=_COUNT,
            cluster=_or_null(_TEXT),
            outcomes={"type": "object", "additionalProperties": _COUNT},
            servers=_list(_server()),
            tests=_list(_test()),
            incidents=_list(_TEXT),
            errors=_list(_TEXT),
        ),
    }


def _server() -> dict[str, Any]:
    return _object(
        name=_TEXT,
        backend=_TEXT,
        model=_TEXT,
        url=_TEXT,
        attached=_FLAG,
        command=_or_null(_TEXT),
        log=_or_null(_TEXT),
        folder=_or_null(_TEXT),
        lives=_list(_life()),
        tests=_COUNT,
        failed=_COUNT,
        restarts=_COUNT,
        ready_seconds=_or_null(_NUMBER),
        stop_seconds=_or_null(_NUMBER),
        peak_rss_bytes=_or_null(_COUNT),
        peak_gpu_bytes=_or_null(_COUNT),
        memory=_list(_row(_NUMBER, _COUNT, _or_null(_COUNT))),
        heartbeat=_object(
            count=_COUNT,
            failed=_COUNT,
            p50_seconds=_or_null(_NUMBER),
            p99_seconds=_or_null(_NUMBER),
            samples=_list(_row(_NUMBER, _or_null(_NUMBER))),
        ),
        leaks=_or_null(_list(_object(kind=_TEXT, text=_TEXT, fails=_FLAG))),
        artifacts=_list(_TEXT),
        metrics=_metrics(),
    )


def _life() -> dict[str, Any]:
    return _object(
        launch=_or_null(_COUNT),
        pid=_or_null(_COUNT),
        node=_or_null(_TEXT),
        launched=_or_null(_NUMBER),
        ready=_or_null(_NUMBER),
        stopping=_or_null(_NUMBER),
        ended=_or_null(_NUMBER),
        phases=_list(_row(_NUMBER, _TEXT)),
        asleep=_list(_row(_NUMBER, _or_null(_NUMBER))),
        end={"enum": ["stopped", "died", "failed", "kept", None]},
        how=_or_null(_TEXT),
        cause=_or_null(_TEXT),
        taken_over=_FLAG,
    )


def _test() -> dict[str, Any]:
    return _object(
        id=_TEXT,
        outcome={"enum": ["passed", "failed", "error", "skipped", "xfailed", "xpassed", "rerun", "interrupted"]},
        started=_or_null(_NUMBER),
        ended=_or_null(_NUMBER),
        wait_seconds=_or_null(_NUMBER),
        setup_seconds=_or_null(_NUMBER),
        call_seconds=_or_null(_NUMBER),
        teardown_seconds=_or_null(_NUMBER),
        worker=_or_null(_TEXT),
        message=_or_null(_TEXT),
        details=_list(_object(title=_TEXT, text=_TEXT)),
        servers=_list(
            _object(name=_TEXT, launch=_COUNT, log_start=_COUNT, log_end=_COUNT, shared=_FLAG, metrics=_metrics())
        ),
        loads=_list({"type": "object", "required": ["server", "workload", "completed", "failed", "ttft", "e2e"]}),
        scores=_list(
            _object(
                name=_TEXT,
                value={"type": "number"},
                min=_or_null({"type": "number"}),
                max=_or_null({"type": "number"}),
                baseline=_or_null({"type": "number"}),
                server=_or_null(_TEXT),
            )
        ),
        artifacts=_list(_TEXT),
    )


def _metrics() -> dict[str, Any]:
    return _or_null({"type": "object", "additionalProperties": _NUMBER})


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _row(*items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": list(items), "minItems": len(items), "maxItems": len(items)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
