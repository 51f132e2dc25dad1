"""What owners say is asked before anything else, once for the whole cluster, and every refusal has its evidence."""

import asyncio
import contextlib
import datetime
import gzip
import json
import random
import socket

import pytest
from pydantic import SecretStr

from models.opt_outs import Declaration, OptOut
from models.outcomes import Candidate, Reason
from tests.support.fetching import PIXELS, failure
from tests.support.hostile_server import (
    Server,
    by_path,
    endless,
    in_loop,
    loopback_settings,
    response,
    serve,
)
from tests.support.processes import free_port
from worker import cluster_memory, opt_outs, site_files
from worker.address import parse_url
from worker.body_memory import SHARED_BYTES
from worker.cluster_memory import Cluster, OriginMemory, Record
from worker.errors import AddressError, CandidateError, OptOutError, TransferError
from worker.fetch import admit, step
from worker.opt_outs import OptOuts
from worker.robots import FILE_BYTES_MAX
from worker.shared import close_redis, open_redis
from worker.transport import GuardedTransport
from worker.visit import Visit

ROBOTS, TDMREP = "/robots.txt", "/.well-known/tdmrep.json"
PRIVATE = response(b"User-agent: *\nCrawl-delay: 3\nDisallow: /private/\n")
RESERVED = response(
    json.dumps([{"location": "/mined/", "tdm-reservation": 1, "tdm-policy": "https://o.test/p"}]).encode()
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No pause before a second attempt, and nothing counts for longer than it says."""
    monkeypatch.setattr(site_files, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(cluster_memory, "KNOWN_SECONDS_MIN", 0.0)


class Crawler:
    """What one child has open, as far as owners are asked."""

    def __init__(self, transport, settings, redis):
        self.transport, self.settings = transport, settings
        self.opt_outs = OptOuts(transport, settings, redis)

    async def admit(self, url: str) -> None:
        """Ask whether a URL may be requested."""
        await self.opt_outs.admit(parse_url(url))

    async def fetch(self, url: str, ignored: tuple[OptOut, ...] = ()):
        """Fetch a URL as a candidate is fetched."""
        hooks = self.opt_outs.hooks(self.opt_outs.obeyed(ignored))
        with self.transport.memory.lease() as lease:
            visit = Visit(Candidate(0, url, 1), lease)
            while True:
                try:
                    if await admit(visit, hooks) and (
                        fetched := await step(self.transport, visit, self.settings, hooks=hooks)
                    ):
                        return fetched
                except CandidateError as error:
                    if visit.again_in(error, self.settings, random.Random(7)) is None:
                        raise


@contextlib.asynccontextmanager
async def crawler(redis_url: str | None = None, **overrides):
    """Open a child's transport and Redis."""
    overrides = {"user_agent": "Pixtrawl/0 (test)"} | overrides
    settings = loopback_settings(redis_url=SecretStr(redis_url) if redis_url else None, **overrides)
    redis = open_redis(settings) if redis_url else None
    try:
        async with GuardedTransport(settings) as transport:
            yield Crawler(transport, settings, redis)
    finally:
        if redis:
            await close_redis(redis)


def targets(server: Server) -> list[str]:
    """What was asked of a server."""
    return [request.target for request in server.requests]


@in_loop
async def test_what_robots_disallows_is_never_asked_for():
    """Of a refused URL nothing but robots.txt is requested; the refusal names the line, for whom, and when."""
    began = datetime.datetime.now(datetime.UTC)
    async with serve(by_path({ROBOTS: PRIVATE})) as server, crawler() as child:
        for _ in range(3):
            error = await failure(child.fetch(f"{server.origin}/private/a.jpg"))
    assert targets(server) == [ROBOTS]
    assert server.requests[0].headers["user-agent"] == "Pixtrawl/0 (test)"
    assert isinstance(error, OptOutError)
    assert (error.reason, error.transient) == (Reason.ROBOTS, False)
    assert error.final_url == f"{server.origin}/private/a.jpg"
    evidence = error.evidence
    assert began <= evidence.fetched_at <= datetime.datetime.now(datetime.UTC)
    assert evidence.document == {
        "rule": "robots.txt",
        "source": f"{server.origin}/robots.txt",
        "fetched_at": evidence.fetched_at.isoformat(timespec="seconds"),
        "line": "Disallow: /private/",
        "line_number": 3,
        "agent": "*",
    }


@in_loop
async def test_dots_in_a_path_lead_past_no_rule():
    """What a server would find behind them is what is refused."""
    async with serve(by_path({ROBOTS: PRIVATE, TDMREP: RESERVED})) as server, crawler() as child:
        for path, reason in (
            ("/a/../private/b", Reason.ROBOTS),
            ("/%2e/private/b", Reason.ROBOTS),
            ("/private/../a", Reason.ROBOTS),
            ("/a/%2E./mined/b", Reason.OPT_OUT),
        ):
            assert (await failure(child.fetch(server.origin + path))).reason is reason
    assert targets(server) == [ROBOTS, TDMREP]


@in_loop
async def test_a_crawl_delay_is_told_before_the_next_request():
    """Whoever paces requests hears of it first, and gives tdmrep.json a turn of its own."""
    heard = []

    def heed(url, seconds):
        heard.append((url.url, seconds))
        return len(heard) == 1

    async with serve(by_path({ROBOTS: PRIVATE})) as server, crawler() as child:
        url = parse_url(f"{server.origin}/a")
        admit = child.opt_outs.hooks(heed=heed).admit
        assert not await admit(url)
        assert targets(server) == [ROBOTS]
        assert not await admit(url)
        assert targets(server) == [ROBOTS, TDMREP]
        assert await admit(url)
        assert heard == [(url.url, 3.0)] * 3
    async with serve(by_path({})) as server, crawler() as child:
        assert await child.opt_outs.hooks(heed=heed).admit(parse_url(f"{server.origin}/a"))
    assert len(heard) == 3


@in_loop
async def test_an_origin_is_asked_once_however_many_wait():
    """A hundred candidates of one host are admitted by one robots.txt and one tdmrep.json."""
    async with serve(by_path({ROBOTS: PRIVATE})) as server, crawler() as child:
        await asyncio.gather(*(child.admit(f"{server.origin}/{number}") for number in range(100)))
        await child.admit(f"{server.origin}/later")
    assert targets(server) == [ROBOTS, TDMREP]


@in_loop
async def test_an_origin_is_scheme_host_and_port():
    """What one port says is not said for another."""
    async with serve(by_path({ROBOTS: PRIVATE})) as strict, serve(by_path({})) as open_, crawler() as child:
        assert (await failure(child.admit(f"{strict.origin}/private/a"))).reason is Reason.ROBOTS
        await child.admit(f"{open_.origin}/private/a")


@pytest.mark.parametrize("status", [200, 204, 206, 304, 400, 401, 403, 404, 410, 418])
@in_loop
async def test_without_a_robots_txt_everything_is_allowed(status):
    """An empty one, none, or one that may not be read: the site has no wish (RFC 9309, section 2.3.1.3)."""
    async with serve(by_path({ROBOTS: response(b"", status)})) as server, crawler() as child:
        await child.admit(f"{server.origin}/a")


@pytest.mark.parametrize("status", [101, 429, 500, 502, 503, 599])
@in_loop
async def test_while_robots_txt_cannot_be_read_nothing_is(status, monkeypatch):
    """An overloaded or broken server is asked twice for it and for nothing else; the evidence says why. Later it is
    asked again (section 2.3.1.4).
    """
    monkeypatch.setattr(opt_outs, "UNREACHABLE_SECONDS", 0)
    answers = {ROBOTS: response(b"User-agent: *\nAllow: /", status)}
    async with serve(by_path(answers)) as server, crawler() as child:
        error = await failure(child.fetch(f"{server.origin}/a.jpg"))
        assert targets(server) == [ROBOTS, ROBOTS]
        answers[ROBOTS] = PRIVATE
        await child.admit(f"{server.origin}/a.jpg")
    assert error.reason is Reason.ROBOTS
    assert error.evidence.unreachable == f"the server answered {status}"
    assert "line" not in error.evidence.document


@in_loop
async def test_a_robots_txt_that_never_comes_refuses():
    """A cut body, an unknown coding, a body that takes for ever: the host answers, its wishes are not known."""
    cut = response(b"User-agent: *", headers={"Content-Length": "100"})

    async def broken(_request, write):
        await write(cut)
        raise EOFError

    async def slow(_request, write):
        await write(cut)
        await asyncio.Event().wait()

    answers = {
        broken: "it broke off",
        by_path({ROBOTS: response(b"x", headers={"Content-Encoding": "br"})}): "its content coding",
        by_path({ROBOTS: response(b"x", headers={"Content-Encoding": "gzip"})}): "its content coding",
        slow: "there was no answer within 1 seconds",
    }
    for answer, why in answers.items():
        read_seconds = 5 if answer is slow else 0.3
        waits = crawler(read_seconds_max=read_seconds, transfer_seconds_max=1)
        async with serve(answer) as server, waits as child:
            error = await failure(child.fetch(f"{server.origin}/a.jpg"))
        assert error.reason is Reason.ROBOTS, error
        assert error.evidence.unreachable.startswith(why)
        assert set(targets(server)) == {ROBOTS}


@in_loop
async def test_a_host_that_gives_no_answer_is_told_as_such():
    """No connection, no name, silence, no HTTP, no public address: that is the outcome of all its candidates."""

    async def silent(_request, _write):
        await asyncio.Event().wait()

    answers = {silent: Reason.TIMEOUT, by_path({ROBOTS: b"SSH-2.0-OpenSSH\r\n\r\n"}): Reason.PROTOCOL}
    for answer, reason in answers.items():
        for limits in ({"read_seconds_max": 0.3}, {"transfer_seconds_max": 0.3}):
            async with serve(answer) as server, crawler(**limits) as child:
                errors = [await failure(child.fetch(f"{server.origin}/{place}")) for place in range(3)]
            assert {error.reason for error in errors} == {reason}
            assert targets(server) == [ROBOTS] * (1 if reason is Reason.TIMEOUT else 2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with crawler() as child:
            refused = await failure(child.fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/a"))
            unknown = await failure(child.fetch("http://name.invalid/a"))
    assert (refused.reason, refused.evidence, unknown.reason) == (Reason.CONNECT, None, Reason.DNS)
    assert isinstance(refused, TransferError)
    async with serve(by_path({})) as server, crawler(allowed_networks=()) as child:
        for _ in range(2):
            blocked = await failure(child.fetch(f"{server.origin}/a"))
            assert blocked.reason is Reason.BLOCKED_ADDRESS
    assert isinstance(blocked, AddressError)
    assert server.connections == 0


@in_loop
async def test_robots_txt_may_be_moved_five_times_also_to_another_host():
    """Its rules are those of the origin that was asked for; after more redirects there is none."""
    async with serve(by_path({"/real": PRIVATE})) as elsewhere:
        hops = {f"/hop/{hop}": f"/hop/{hop - 1}" for hop in range(1, 9)} | {
            "/hop/0": f"{elsewhere.origin}/real"
        }
        answers = {path: response(status=302, headers={"Location": to}) for path, to in hops.items()}
        for first, refused in (("/hop/3", True), ("/hop/4", False)):
            answers[ROBOTS] = response(status=301, headers={"Location": first})
            async with serve(by_path(answers)) as server, crawler() as child:
                if refused:
                    error = await failure(child.admit(f"{server.origin}/private/a"))
                    assert error.evidence.source == f"{elsewhere.origin}/real"
                else:
                    await child.admit(f"{server.origin}/private/a")


@in_loop
async def test_a_robots_txt_that_moved_to_nowhere_refuses():
    """A private address is never connected to; what cannot be fetched is not known."""
    for location in ("http://10.0.0.1/robots.txt", "ftp://images.test/", f"http://127.0.0.1:{free_port()}/"):
        moved = response(status=302, headers={"Location": location})
        async with serve(by_path({ROBOTS: moved})) as server, crawler() as child:
            error = await failure(child.admit(f"{server.origin}/a"))
        assert error.reason is Reason.ROBOTS
        assert error.evidence.unreachable.startswith("it is redirected to ")


@in_loop
async def test_of_an_endless_robots_txt_the_beginning_counts():
    """500 KiB are read and obeyed, then the connection is closed; compressed or not."""
    bomb = gzip.compress(b"User-agent: *\nDisallow: /private/\n" + b"#\n" * FILE_BYTES_MAX)
    head = b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /private/\n"
    answers = [
        endless(head, b"# more\n" * 1000),
        by_path({ROBOTS: response(bomb, headers={"Content-Encoding": "gzip"})}),
    ]
    for answer in answers:
        async with serve(answer) as server, crawler() as child:
            error = await failure(child.admit(f"{server.origin}/private/a"))
            assert child.transport.memory.free_bytes == SHARED_BYTES
        assert error.evidence.line_number == 2


@in_loop
async def test_where_a_redirect_leads_is_asked_for_only_if_it_may():
    """Each hop is checked by the rules of its own origin."""
    async with serve(by_path({ROBOTS: PRIVATE, "/private/a": response(PIXELS)})) as strict:
        moved = response(status=302, headers={"Location": f"{strict.origin}/private/a"})
        async with serve(by_path({"/go": moved})) as server, crawler() as child:
            error = await failure(child.fetch(f"{server.origin}/go"))
    assert (error.reason, error.final_url) == (Reason.ROBOTS, f"{strict.origin}/private/a")
    assert targets(strict) == [ROBOTS]


@in_loop
async def test_a_header_refuses_before_the_body_is_read():
    """X-Robots-Tag and tdm-reservation, as they were received; what others are told is not for us."""
    picture = {
        "/noai": response(PIXELS, headers={"x-robots-TAG": "nofollow, noai"}),
        "/named": response(PIXELS, headers={"X-Robots-Tag": "pixtrawl: noindex"}),
        "/other": response(PIXELS, headers={"X-Robots-Tag": "otherbot: noai"}),
        "/tdm": response(PIXELS, headers={"TDM-Reservation": "1", "tdm-policy": "https://o.test/p"}),
        "/free": response(PIXELS, headers={"tdm-reservation": "0"}),
        "/missing": response(b"", 404, headers={"X-Robots-Tag": "noai"}),
    }
    async with serve(by_path(picture)) as server, crawler() as child:
        found = {
            path: await failure(child.fetch(server.origin + path)) for path in ("/noai", "/named", "/tdm")
        }
        assert (await child.fetch(f"{server.origin}/other")).body == PIXELS
        assert (await child.fetch(f"{server.origin}/free")).body == PIXELS
        assert (await failure(child.fetch(f"{server.origin}/missing"))).reason is Reason.HTTP_STATUS
    assert {error.reason for error in found.values()} == {Reason.OPT_OUT}
    assert {error.wire_bytes for error in found.values()} == {0}
    evidence = {path: error.evidence for path, error in found.items()}
    assert evidence["/noai"].line == "x-robots-TAG: nofollow, noai"
    assert (evidence["/named"].rule, evidence["/named"].agent) == (Declaration.X_ROBOTS_TAG, "pixtrawl")
    assert evidence["/tdm"].source == f"{server.origin}/tdm"
    assert (evidence["/tdm"].rule, evidence["/tdm"].policy) == (Declaration.TDM_HEADER, "https://o.test/p")


@in_loop
async def test_what_tdmrep_json_reserves_is_never_asked_for():
    """Both files are asked for, the picture is not; the evidence is the rule."""
    async with serve(by_path({TDMREP: RESERVED, "/free/a": response(PIXELS)})) as server, crawler() as child:
        error = await failure(child.fetch(f"{server.origin}/mined/a.jpg"))
        assert (await child.fetch(f"{server.origin}/free/a")).body == PIXELS
    assert targets(server) == [ROBOTS, TDMREP, "/free/a"]
    assert (error.reason, error.evidence.rule) == (Reason.OPT_OUT, Declaration.TDMREP_JSON)
    assert json.loads(error.evidence.line)["location"] == "/mined/"
    assert error.evidence.policy == "https://o.test/p"


@pytest.mark.parametrize("status", [404, 403, 429, 500])
@in_loop
async def test_without_a_tdmrep_json_nothing_is_reserved(status):
    """Who does not provide it takes no part in the protocol."""
    async with serve(by_path({TDMREP: response(b"", status)})) as server, crawler() as child:
        await child.admit(f"{server.origin}/mined/a")


@in_loop
async def test_a_tdmrep_json_that_robots_disallows_is_not_asked_for():
    """robots.txt holds for it as for any other path."""
    robots = response(b"User-agent: *\nDisallow: /.well-known/")
    async with serve(by_path({ROBOTS: robots, TDMREP: RESERVED})) as server, crawler() as child:
        await child.admit(f"{server.origin}/mined/a")
    assert targets(server) == [ROBOTS]


@in_loop
async def test_what_robots_forbids_one_crawler_is_not_known_to_another(redis_url):
    """A tdmrep.json that one name may not ask for reserves all the same for a name that may."""
    robots = response(b"User-agent: pixtrawl\nDisallow: /.well-known/")
    async with serve(by_path({ROBOTS: robots, TDMREP: RESERVED})) as server, crawler(redis_url) as child:
        await child.admit(f"{server.origin}/mined/a")
        async with crawler(redis_url, user_agent="Other/1") as other:
            assert (await failure(other.admit(f"{server.origin}/mined/a"))).reason is Reason.OPT_OUT


@in_loop
async def test_a_job_ignores_what_its_operator_lets_it():
    """Who may ignore an opt-out does not even ask for it; what the operator does not name is obeyed."""
    answers = {
        ROBOTS: PRIVATE,
        TDMREP: RESERVED,
        "/private/a": response(PIXELS, headers={"X-Robots-Tag": "noai"}),
    }
    every = tuple(OptOut)
    async with serve(by_path(answers)) as server, crawler(opt_outs_ignorable=every) as child:
        assert (await child.fetch(f"{server.origin}/private/a", every)).body == PIXELS
        assert targets(server) == ["/private/a"]
        only_robots = await failure(child.fetch(f"{server.origin}/private/a", (OptOut.ROBOTS,)))
        assert only_robots.evidence.rule is Declaration.X_ROBOTS_TAG
        assert (await failure(child.fetch(f"{server.origin}/private/a"))).reason is Reason.ROBOTS
    async with serve(by_path(answers)) as server, crawler(opt_outs_ignorable=(OptOut.TDM,)) as child:
        assert (await failure(child.fetch(f"{server.origin}/private/a", every))).reason is Reason.ROBOTS
        assert child.opt_outs.obeyed(every) == {OptOut.ROBOTS, OptOut.X_ROBOTS_TAG}


@in_loop
async def test_the_cluster_asks_an_origin_once(redis_url):
    """Four children that begin at once ask for each file once; one that comes later for none."""
    async with (
        serve(by_path({ROBOTS: PRIVATE, TDMREP: RESERVED})) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        children = [await stack.enter_async_context(crawler(redis_url)) for _ in range(4)]
        admitted = [child.admit(f"{server.origin}/{number}") for number in range(50) for child in children]
        await asyncio.gather(*admitted)
        assert targets(server) == [ROBOTS, TDMREP]
        late = await stack.enter_async_context(crawler(redis_url))
        robots = await failure(late.fetch(f"{server.origin}/private/a"))
        mined = await failure(late.fetch(f"{server.origin}/mined/a"))
        asked_by_another_name = await stack.enter_async_context(crawler(redis_url, user_agent="Other/1"))
        assert targets(server) == [ROBOTS, TDMREP]
        await asked_by_another_name.admit(f"{server.origin}/a")
        redis = open_redis(late.settings)
        keys = {key: await redis.ttl(key) async for key in redis.scan_iter("pixtrawl:*:http*")}
        await close_redis(redis)
    assert targets(server) == [ROBOTS, TDMREP, ROBOTS]
    assert (robots.evidence.line, robots.evidence.line_number) == ("Disallow: /private/", 3)
    assert mined.evidence.policy == "https://o.test/p"
    assert keys
    assert all(0 < seconds <= 24 * 3600 for seconds in keys.values())


@in_loop
async def test_unreachable_is_known_to_the_cluster_and_absent_is_not(redis_url):
    """A server's 503 is the same for all; whether a host can be connected to, each child sees for itself."""
    busy = serve(by_path({ROBOTS: response(b"", 503)}))
    async with busy as server, crawler(redis_url) as one, crawler(redis_url) as two:
        for child in (one, two):
            error = await failure(child.admit(f"{server.origin}/a"))
            assert error.evidence.unreachable == "the server answered 503"
        assert targets(server) == [ROBOTS, ROBOTS]
        gone = f"http://127.0.0.1:{free_port()}"
        assert (await failure(one.admit(f"{gone}/a"))).reason is Reason.CONNECT
        redis = open_redis(one.settings)
        assert await redis.exists(f"pixtrawl:robots:pixtrawl:{gone}") == 0
        await close_redis(redis)


@in_loop
async def test_who_waits_for_another_child_takes_its_answer_or_its_place(redis_url):
    """While somebody asks, others wait; with his answer they go on, and when he gives up, one of them asks."""
    async with serve(by_path({ROBOTS: PRIVATE})) as server, crawler(redis_url) as child:
        redis = open_redis(child.settings)
        key = f"pixtrawl:robots:pixtrawl:{server.origin}"
        for answer in (True, False):
            child.opt_outs.robots._known.clear()
            await redis.set(key, b"")
            waiting = asyncio.ensure_future(child.admit(f"{server.origin}/private/a"))
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
            assert server.requests == []
            if answer:
                lines = [[7, "Disallow: /"]]
                content = {"source": "http://o.test/robots.txt", "at": 0, "agent": "*", "lines": lines}
                await redis.set(key, Record(content, 2e9).pack())
            else:
                await redis.delete(key)
            assert (await failure(waiting)).evidence.line_number == (7 if answer else 3)
        await redis.set(key, b"no record of ours")
        child.opt_outs.robots._known.clear()
        assert (await failure(child.admit(f"{server.origin}/private/a"))).evidence.line_number == 3
        await close_redis(redis)
    assert targets(server) == [ROBOTS, ROBOTS]


@in_loop
async def test_a_question_that_nobody_waits_for_is_given_up(redis_url):
    """When all who wait are cancelled, the request ends and another child may ask; who comes anew asks anew."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def held(request, write):
        asked.set()
        await answer.wait()
        await write(PRIVATE if request.target == ROBOTS else response(b"", 404))

    async with serve(held) as server, crawler(redis_url) as child:
        redis = open_redis(child.settings)
        waiting = [asyncio.ensure_future(child.admit(f"{server.origin}/{number}")) for number in range(3)]
        await asked.wait()
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        claim = f"pixtrawl:robots:pixtrawl:{server.origin}"
        assert await redis.exists(claim)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        async with asyncio.timeout(10):
            while await redis.exists(claim):
                pass
        await close_redis(redis)
        answer.set()
        assert (await failure(child.admit(f"{server.origin}/private/a"))).reason is Reason.ROBOTS
    assert targets(server) == [ROBOTS, ROBOTS]


@in_loop
async def test_without_redis_each_child_asks_and_remembers_for_itself():
    """Redis away costs nothing but a second question."""
    away = f"redis://127.0.0.1:{free_port()}/0"
    async with serve(by_path({ROBOTS: PRIVATE})) as server, crawler(away) as one, crawler(away) as two:
        for child in (one, two):
            for _ in range(3):
                await child.admit(f"{server.origin}/a")
                assert (await failure(child.admit(f"{server.origin}/private/a"))).reason is Reason.ROBOTS
    assert targets(server) == [ROBOTS, TDMREP] * 2


@in_loop
async def test_a_child_remembers_within_a_bound(monkeypatch):
    """What was longest not needed is forgotten first."""
    asked = []

    async def ask(origin):
        asked.append(origin)
        return Record({"text": "x" * 100}, 2e9)

    memory = OriginMemory("pixtrawl:test", Cluster(None), ask, dict)
    monkeypatch.setattr(cluster_memory, "BYTES_MAX", 1000)
    for origin in ["a", *"bcdef", "a", *"ghi", "a", "b"]:
        await memory.find(origin)
    assert asked == [*"abcdef", *"ghi", "b"]
    assert memory._bytes <= 1000
    assert memory._bytes == sum(size for _, _, size in memory._known.values())


@in_loop
async def test_what_a_machine_with_another_clock_learned_counts_all_the_same(monkeypatch):
    """A record that has run out by this child's clock is used for a while, not asked for at every candidate."""
    asked = []

    async def ask(origin):
        asked.append(origin)
        return Record({"source": origin}, 1e9)

    monkeypatch.setattr(cluster_memory, "KNOWN_SECONDS_MIN", 60.0)
    memory = OriginMemory("pixtrawl:test", Cluster(None), ask, dict)
    for _ in range(3):
        assert await memory.find("a") == {"source": "a"}
    assert asked == ["a"]
