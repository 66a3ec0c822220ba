-- Sliding window: a sorted set of the charged hits; the score is the time. A member is "<total
-- charged so far> <its cost>", zero-padded so that members with equal times stay in order. The
-- difference of two totals is what was charged between them, without adding up the members.
local sliding = {}
algorithms.s = sliding

local function entry(found) -- the reply of a command WITHSCORES
  local name, at = found[1], tonumber(found[2])
  if not name then return nil end
  local total, cost = string.match(name, '^(%d+) (%d+)$')
  if not total or #total ~= 16 then foreign() end
  return { name = name, at = at, total = tonumber(total), cost = tonumber(cost) }
end

local function entry_at(key, rank)
  return entry(redis.call('ZRANGE', key, rank, rank, 'WITHSCORES'))
end

function sliding.read(rule)
  local span = rule.period * 1000
  rule.gone, rule.total, rule.used, rule.last = whole(now() - span), 0, 0, nil
  local last = entry_at(rule.key, -1)
  if not last then return end
  -- At 0 the key still exists, but its time is over. If the clock was set back, do not wait for it.
  rule.outdated = redis.call('PTTL', rule.key) == 0 or last.at > now() + span
  if rule.outdated then return end
  rule.total = last.total
  local oldest = entry(redis.call(
    'ZRANGEBYSCORE', rule.key, '(' .. rule.gone, '+inf', 'WITHSCORES', 'LIMIT', 0, 1))
  if not oldest then return end
  rule.before = oldest.total - oldest.cost
  rule.last, rule.used = last.at, last.total - rule.before
end

function sliding.wait(rule, cost)
  local excess = rule.used + cost - rule.amount
  if cost == 0 or excess <= 0 then return 0 end
  -- Find the first entry whose expiry frees at least `excess`.
  local low = redis.call('ZCOUNT', rule.key, '-inf', rule.gone)
  local high = redis.call('ZCARD', rule.key) - 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if entry_at(rule.key, middle).total - rule.before >= excess then
      high = middle
    else
      low = middle + 1
    end
  end
  return entry_at(rule.key, low).at + rule.period * 1000 - now()
end

local function forget_gone(rule)
  redis.call('ZREMRANGEBYSCORE', rule.key, '-inf', rule.outdated and '+inf' or rule.gone)
end

function sliding.charge(rule, cost)
  forget_gone(rule)
  rule.last = math.max(now(), rule.last or 0)
  rule.used, rule.total = rule.used + cost, rule.total + cost
  redis.call('ZADD', rule.key, whole(rule.last), string.format('%016.0f %.0f', rule.total, cost))
  -- One millisecond longer than the last entry counts, because a TTL does not count microseconds.
  redis.call('PEXPIRE', rule.key, whole(rule.period + math.ceil((rule.last - now()) / 1000) + 1))
end

function sliding.refuse() end

-- Takes from the newest entries. The key keeps its TTL.
function sliding.refund(rule, cost)
  forget_gone(rule)
  local left = math.min(cost, rule.used)
  while left > 0 do
    local newest = entry_at(rule.key, -1)
    if newest.cost > left then -- before the other is removed: an empty key would lose its TTL
      redis.call('ZADD', rule.key, whole(newest.at),
        string.format('%016.0f %.0f', newest.total - left, newest.cost - left))
    end
    redis.call('ZREM', rule.key, newest.name)
    left = left - newest.cost
  end
end

function sliding.report(rule)
  local reset = rule.last and rule.last + rule.period * 1000 - now() or 0
  return math.max(0, rule.amount - rule.used), reset
end
