-- Fixed window: a counter. GET shows the attempts, TTL the rest of the window.
local fixed = {}
algorithms.f = fixed

local function read_counter(rule, longest) -- the most that may be left of the window, in ms
  rule.count, rule.left = 0, rule.period
  local value = redis.call('GET', rule.key)
  if not value then return end
  if value ~= '0' and (#value > 15 or not string.find(value, '^[1-9]%d*$')) then foreign() end
  local left = redis.call('PTTL', rule.key)
  if left < 0 then -- no TTL: another writer died before it set one
    left, rule.endless = rule.period, true
  elseif left > longest then -- of a longer limit: shortened when this one counts
    left, rule.shortened = longest, true
  end
  -- At 0 the key still exists, but the window is over.
  if left > 0 then rule.count, rule.left = tonumber(value), left end
end

function fixed.read(rule) read_counter(rule, rule.period) end

function fixed.wait(rule, cost)
  return cost > 0 and rule.count + cost > rule.amount and rule.left * 1000 or 0
end

function fixed.charge(rule, cost)
  rule.count = rule.count + cost
  if rule.count == cost then
    redis.call('SET', rule.key, cost, 'PX', whole(rule.left))
  else
    redis.call('INCRBY', rule.key, cost)
    if rule.shortened then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
  end
end

function fixed.refuse(rule, cost)
  if rule.count >= rule.amount then
    fixed.charge(rule, cost)
  elseif rule.shortened then
    redis.call('PEXPIRE', rule.key, whole(rule.left))
  end
end

function fixed.refund(rule, cost)
  if rule.count == 0 then return end
  rule.count = math.max(0, math.min(rule.count, rule.amount) - cost)
  if rule.count == 0 then redis.call('DEL', rule.key) return end
  redis.call('SET', rule.key, whole(rule.count), 'PX', whole(rule.left))
end

function fixed.report(rule)
  return math.max(0, rule.amount - rule.count), rule.count > 0 and rule.left * 1000 or 0
end

-- Until the end of a day, week or month: of three ends, the first after now by the server's clock.
local calendar = setmetatable({}, { __index = fixed })
algorithms.c = calendar

function calendar.read(rule)
  local ms = math.floor(now() / 1000)
  local ends = rule[4] > ms and rule[4] or rule[5] > ms and rule[5] or rule[6]
  rule.period = ends - ms
  if rule.period <= 0 or rule.period > rule[6] - rule[4] then
    error('CLOCK this bot and the server are more than a day apart: set both clocks (NTP)', 0)
  end
  read_counter(rule, rule.period)
end
