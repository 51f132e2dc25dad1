-- What one child tells of its hosts, and what it may do there next: one atomic step for any number of hosts.
--
-- KEYS: one hash a host. ARGV[1]: JSON of the rules, ARGV[1 + i]: JSON of the child's report of KEYS[i]. All times are
-- milliseconds of Redis' own clock; answers are relative to now, so that no other clock counts. Fields of a hash:
-- limit (transfers at once), pause (between two starts), edge (the pause that it did not bear), run and answers (for how
-- long it was asked since it last refused, and what came), seen (when that was last counted), cost (of a refusal), calm
-- (no cut before), next (no start before), until (it asked to wait), down (failures in a row), refused (since when it has
-- refused without a success), closed (nobody asks before) with why and detail, base (its usual answer time), and
-- c:CHILD = "slots wanted expiry".
local rules = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local mine = 'c:' .. rules.child
local answers = {}

local function close(host, milliseconds, why, detail)
  host.closed, host.why, host.detail = now + milliseconds, why, detail
end

-- It refused. Since it last did, it has given so many answers in the time in which it was asked: that it did not bear;
-- as many in that time and in what this refusal costs, it did. So starts go on at the second pace, and near the first
-- with care. At most once for what was in flight together.
local function slow_down(host, wait)
  if now < host.calm then return end
  local cost = math.max(1000, math.min(wait, rules.cost_max))
  local answers = math.max(1, host.answers)
  local borne, not_borne = (host.run + cost) / answers, host.run / answers
  if host.pause > 0 then
    borne = math.max(1.05 * host.pause, math.min(borne, 2 * host.pause))
  else
    borne = math.min(borne, rules.pause_first)
  end
  host.edge = math.max(host.pause, math.min(borne, not_borne))
  host.pause = math.min(rules.pause_max, borne)
  host.limit = math.max(1, 0.7 * host.limit)
  host.calm = now + math.max(1000, host.pause)
  host.next = host.calm
  host.run, host.answers, host.cost, host.seen = 0, 0, cost, now + math.max(1000, wait)
end

-- It answered: quickly back to the pace that it did not bear, gently past it, and then ever faster, since it seems to
-- bear more than it did. Time counts as far as the pace is used, and the less the more a refusal costs.
local function speed_up(host, floor, answers)
  host.limit = math.min(rules.limit, host.limit + answers / host.limit)
  if host.pause > floor then
    local beyond = host.edge / host.pause - 1
    local growth = 0.01 + (beyond < 0 and -0.5 or 0.1) * beyond
    if host.edge == 0 or growth > 0.7 then growth = 0.7 end
    host.pause = math.max(floor, host.pause * math.exp(-growth * math.min(1, answers * host.pause / host.cost)))
    if host.pause < rules.pause_last then host.pause = floor end
  end
end

-- It answers, but ever later: fewer at once.
local function heed_latency(host, report)
  if report.latency <= 0 then return false end
  if host.base == 0 then host.base = report.latency end
  host.base = math.min(host.base * 1.02, report.latency)
  local late = report.latency > math.max(4 * host.base, host.base + 1000)
  if late and now >= host.calm then
    host.limit = math.max(1, host.limit * 0.7)
    host.calm = now + 1000
  end
  return late
end

local function heed(host, report, floor)
  if report.ok > 0 or report.struggling > 0 then
    host.down, host.refused, host.closed = 0, 0, 0
  elseif report.failed > 0 then
    host.down = host.down + report.failed
    if host.down >= rules.failures then close(host, rules.closed, report.why, report.detail) end
  end
  if report.wait >= 0 then
    if report.ok == 0 and host.refused == 0 then host.refused = now end
    if report.wait > 0 then host['until'] = math.max(host['until'], now + math.min(report.wait, rules.patience)) end
    local hopeless = report.wait > rules.patience or (host.refused > 0 and now - host.refused > rules.patience)
    if hopeless then close(host, math.min(math.max(report.wait, rules.closed), rules.closed_max), 'rate_limited', report.detail) end
  end
  host.answers = host.answers + report.ok
  local late = heed_latency(host, report)
  if report.refused > 0 or report.struggling > report.ok then slow_down(host, math.max(0, report.wait)) elseif report.ok > 0 and not late then speed_up(host, floor, report.ok) end
end

for i, key in ipairs(KEYS) do
  local report = cjson.decode(ARGV[1 + i])
  local host = { limit = rules.limit, pause = 0, edge = 0, run = 0, answers = 0, seen = now, cost = 1000,
    calm = 0, next = 0, ['until'] = 0, down = 0, refused = 0,
    closed = 0, base = 0, delay = 0, why = '', detail = '' }
  local others, contested, children = 0, false, 1
  local fields = redis.call('HGETALL', key)
  for j = 1, #fields, 2 do
    local name, value = fields[j], fields[j + 1]
    if name:sub(1, 2) == 'c:' then
      local slots, wanted, expiry = value:match('^(%d+) (%d+) (%d+)$')
      if tonumber(expiry) < now then
        redis.call('HDEL', key, name)
      elseif name ~= mine then
        others, children = others + tonumber(slots), children + 1
        contested = contested or tonumber(wanted) > tonumber(slots)
      end
    else
      host[name] = (name == 'why' or name == 'detail') and value or tonumber(value)
    end
  end
  if report.delay >= 0 then host.delay = report.delay end
  local floor = math.max(rules.pause, host.delay)
  host.pause = math.max(floor, host.pause)
  host.limit = math.min(rules.limit, host.limit)
  if now > host.seen then
    host.run, host.seen = host.run + math.min(1000, now - host.seen), now
  end
  heed(host, report, floor)

  local closed = math.max(0, host.closed - now)
  -- After a closure one transfer finds out whether the host is back.
  local doubtful = host.down >= rules.failures or host.why == 'rate_limited' and host.refused > 0 and host.closed > 0
  local limit = (closed > 0 and 0) or (doubtful and 1) or math.floor(host.limit)
  local most = contested and math.max(1, math.floor(limit / children)) or limit
  local slots = math.max(0, math.min(report.want, most, limit - others))
  local begin = math.max(now, host.next, host['until'])
  local starts = -1
  if host.pause > 0 then
    starts = 0
    if slots > 0 and begin <= now + rules.horizon then
      -- Who asks first must not take what is for all.
      local share = contested and math.max(0, math.ceil(rules.horizon / host.pause / children) - report.have) or report.need
      starts = math.min(report.need, share, math.floor((now + rules.horizon - begin) / host.pause) + 1)
    end
    host.next = begin + starts * host.pause
  end

  local written = {}
  for name, value in pairs(host) do
    written[#written + 1] = name
    written[#written + 1] = tostring(value)
  end
  redis.call('HSET', key, unpack(written))
  local held = math.max(slots, report.busy)
  if held > 0 or report.want > 0 then
    redis.call('HSET', key, mine, string.format('%d %d %d', held, report.want, now + rules.lease))
  else
    redis.call('HDEL', key, mine)
  end
  redis.call('PEXPIRE', key, rules.kept + math.ceil(math.max(0, host['until'] - now, closed)))
  answers[i] = { slots, starts, math.ceil(begin - now), math.ceil(1000 * host.pause), math.ceil(math.max(0, host['until'] - now)),
    math.ceil(closed), host.why, host.detail }
end
return answers
