-- May one request be made at a provider, and when? One atomic step for the whole cluster.
--
-- KEYS[1]: hash of the provider: next (no start before), until (it is to be left alone) with why, down (failures in
-- a row). KEYS[2]: requests under way, by the time at which whoever makes them counts as lost. KEYS[3]: starts of the
-- last day, kept only where there are quotas. ARGV: 'take' or 'end', JSON of the rules. All times are milliseconds of
-- Redis' own clock; answers are relative to now: {1, milliseconds until the start} or {0, milliseconds to wait, why
-- not: asked, pace, busy, per_hour or per_day, and what the provider said}.
local rules = cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local HOUR, DAY = 3600000, 86400000
local FAILED_FIRST, FAILED_MAX = 1000, 600000

local function keep()
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, 2 * DAY) end
end

if ARGV[1] == 'end' then
  redis.call('ZREM', KEYS[2], rules.token)
  local wait = rules.wait
  if rules.verdict == 'answered' then redis.call('HDEL', KEYS[1], 'down') end
  if rules.verdict == 'failed' then
    local down = redis.call('HINCRBY', KEYS[1], 'down', 1)
    wait = math.max(wait, math.min(FAILED_MAX, FAILED_FIRST * 2 ^ math.min(down - 1, 20)))
  end
  if wait > 0 and now + wait > tonumber(redis.call('HGET', KEYS[1], 'until') or 0) then
    redis.call('HSET', KEYS[1], 'until', string.format('%d', now + wait), 'why', rules.why)
  end
  keep()
  return {1, 0}
end

local left_alone = tonumber(redis.call('HGET', KEYS[1], 'until') or 0) - now
if left_alone > 0 then return {0, left_alone, 'asked', redis.call('HGET', KEYS[1], 'why') or ''} end

redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - DAY)
for name, window in pairs({per_hour = HOUR, per_day = DAY}) do
  local most = rules[name]
  if most > 0 then
    local first = string.format('(%d', now - window)
    local over = redis.call('ZCOUNT', KEYS[3], first, '+inf') - most
    if over >= 0 then
      local oldest = redis.call('ZRANGEBYSCORE', KEYS[3], first, '+inf', 'WITHSCORES', 'LIMIT', over, 1)
      return {0, tonumber(oldest[2]) + window - now, name, ''}
    end
  end
end

local start = math.max(now, tonumber(redis.call('HGET', KEYS[1], 'next') or 0))
if start - now > rules.horizon then return {0, start - now - rules.horizon, 'pace', ''} end

redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('ZCARD', KEYS[2]) >= rules.at_once then return {0, rules.poll, 'busy', ''} end

redis.call('ZADD', KEYS[2], start + rules.lease, rules.token)
redis.call('HSET', KEYS[1], 'next', string.format('%d', start + rules.interval))
if rules.per_hour > 0 or rules.per_day > 0 then redis.call('ZADD', KEYS[3], start, rules.token) end
keep()
return {1, start - now}
