-- Token bucket: the time at which the bucket is full again, a double of microseconds; negative
-- while the bucket is below empty. See token_bucket.py for what is rounded.
local bucket = {}
algorithms.b = bucket

local MOST = 2 ^ 52 -- that may be missing, see token_bucket.py
local function floored(us) return math.floor(us * 4) / 4 end
local function room(rule, cost) -- the most that may be missing before a hit of this cost
  return math.ceil((rule.burst - cost) * rule.token * 4) / 4
end

function bucket.read(rule)
  rule.burst, rule.token = rule[4], rule.period * 1000 / rule.amount
  local value = redis.call('GET', rule.key)
  local full_at = tonumber(value or 0)
  if value and not (full_at and math.abs(full_at) > 1e15) then foreign() end
  rule.missing = math.max(0, math.abs(full_at) - now())
  local most = floored(rule.burst * rule.token)
  if full_at > 0 and rule.missing > most then -- a slower limit wrote it, or the clock was set back
    rule.missing, rule.shortened = most, true
  end
end

function bucket.wait(rule, cost)
  return cost > 0 and math.max(0, math.ceil(rule.missing - room(rule, cost))) or 0
end

local function store(rule)
  if rule.missing == 0 then redis.call('DEL', rule.key) return end
  local full_at = now() + rule.missing
  if rule.missing > rule.burst * rule.token then full_at = -full_at end
  local left = whole(math.ceil(rule.missing / 1000) + 1)
  redis.call('SET', rule.key, string.format('%.17g', full_at), 'PX', left)
end

function bucket.charge(rule, cost)
  rule.missing = math.min(floored(rule.missing + cost * rule.token), MOST)
  store(rule)
end

function bucket.refuse(rule)
  if rule.shortened then store(rule) end
end

function bucket.refund(rule, cost)
  if rule.missing == 0 then return end
  rule.missing = math.max(0, floored(rule.missing - cost * rule.token))
  store(rule)
end

function bucket.report(rule)
  local left = math.max(0, math.floor(rule.burst - rule.missing / rule.token))
  if left < rule.burst and rule.missing <= room(rule, left + 1) then left = left + 1 end
  return left, math.ceil(rule.missing)
end
