"""
A search server, with the HTTP protocol of Search-R1.

    python -m sdar_trl.envs.search_qa.serve --corpus wiki-18.jsonl --port 8000

`POST /retrieve` takes `{"queries": ["...", ...], "topk": 3, "return_scores": true}` and answers `{"result": [...]}`:
for each query a list of `{"document": {"contents": "Title\\nText"}, "score": 1.0}`, or of the documents alone without
`return_scores`. `GET /health` says whether it is up, `GET /metrics` counts, in Prometheus' format. Needs the extra
`search_qa`.
"""

import argparse
import os
import time
from collections import Counter
from typing import Any

from .engines import SearchEngine, open_engine


LIMITS = {"queries": 512, "query_length": 4096, "topk": 100, "body_bytes": 2**21}


def search_app(engine: SearchEngine, topk: int = 3, limits: dict[str, int] | None = None) -> Any:
    """
    The server as an ASGI application.

    Args:
        engine ([`SearchEngine`]):
            What searches.
        topk (`int`, *optional*, defaults to `3`):
            Documents for each query where a request does not say.
        limits (`dict[str, int]`, *optional*):
            Of a request: most `queries`, their `query_length` in characters, `topk` and `body_bytes`; `LIMITS` where
            not given.

    Returns:
        `fastapi.FastAPI`: the application.

    Raises:
        `ImportError`: if the packages of the extra `search_qa` are not installed.
    """
    try:
        import uvicorn  # noqa: F401  so that it is missed before the index is built
        from anyio import CapacityLimiter, to_thread
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, PlainTextResponse
    except ModuleNotFoundError as error:
        raise ImportError(f'The search server needs {error.name!r}: pip install "sdar-trl[search_qa]"') from error
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    most = {**LIMITS, **(limits or {})}

    class Query(BaseModel):
        model_config = ConfigDict(strict=True)
        queries: list[str] = Field(min_length=1, max_length=most["queries"])
        topk: int | None = Field(default=None, ge=1, le=most["topk"])
        return_scores: bool = False

    app = FastAPI(title="Search-QA search server", docs_url=None, redoc_url=None, openapi_url=None)
    counts: Counter[str] = Counter(dict.fromkeys(("requests", "queries", "refused", "failed"), 0))
    state: dict[str, Any] = {"seconds": 0.0, "limiter": None}

    def refused(status: int, message: str) -> JSONResponse:
        counts["refused"] += 1
        return JSONResponse({"detail": message}, status)

    @app.post("/retrieve")
    async def retrieve(request: Request) -> JSONResponse:
        counts["requests"] += 1
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most["body_bytes"]:
                return refused(413, f"A request must have at most {most['body_bytes']} bytes.")
        try:
            query = Query.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(map(str, first["loc"]))
            return refused(422, f"{field}: {first['msg']}" if field else first["msg"])
        for number, text in enumerate(query.queries):
            if len(text) > most["query_length"]:
                return refused(422, f"queries.{number}: at most {most['query_length']} characters, got {len(text)}.")
        state["limiter"] = state["limiter"] or CapacityLimiter(max(1, os.cpu_count() or 1))
        began = time.perf_counter()
        try:
            found = await to_thread.run_sync(
                engine.search, query.queries, query.topk or topk, limiter=state["limiter"]
            )
        except Exception as error:
            counts["failed"] += 1
            return JSONResponse({"detail": f"The search failed: {error!r}"[:500]}, 500)
        state["seconds"] += time.perf_counter() - began
        counts["queries"] += len(found)
        result: list[list[Any]] = []
        for hits in found:
            documents = [{"contents": hit.document.contents} for hit in hits]
            if query.return_scores:
                result.append([{"document": d, "score": h.score} for d, h in zip(documents, hits, strict=True)])
            else:
                result.append(documents)
        return JSONResponse({"result": result})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        values = {**{f"{name}_total": count for name, count in counts.items()}, "seconds_total": state["seconds"]}
        lines = (f"# TYPE search_{name} counter\nsearch_{name} {value}\n" for name, value in values.items())
        return PlainTextResponse("".join(lines))

    return app


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sdar_trl.envs.search_qa.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--corpus", metavar="FILE", help="JSON lines of documents; else the embedded corpus.")
    parser.add_argument("--engine", choices=["bm25", "dense"], default="bm25", help="How the corpus is searched.")
    parser.add_argument("--encoder", help="With dense: a model of sentence-transformers.")
    parser.add_argument("--topk", type=int, default=3, help="Documents where a request does not say how many.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for other machines too.")
    parser.add_argument("--port", type=int, default=8000, help="Port.")
    for name, value in LIMITS.items():
        parser.add_argument(f"--max_{name}", type=int, default=value, help="Limit of a request.")
    args = parser.parse_args()
    app = search_app(
        open_engine(args.corpus, args.engine, args.encoder),
        args.topk,
        {name: getattr(args, f"max_{name}") for name in LIMITS},
    )
    import uvicorn

    # open requests are answered before it stops
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
