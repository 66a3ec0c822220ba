-- Decides any number of hits in one call. The files beside this one are joined into it.
--
-- ARGV[i] says what to do with KEYS[i]: "<kind><flags> <amount> <period ms> <cost> <more>"
--   kind   f fixed window; c the same until the end of a day, week or month, <more> are the next
--          three ends in ms; s sliding window; b token bucket, <more> is the burst;
--          p penalty, <more> are the ban and the longest ban in ms, the latter 0 if it never grows
--   flags  & decided together with the next key, ? peek, ! peek and delete, + charge even above
--          the limit, - refund, ~ shadow, @ penalty: the ban begins now, or a longer one goes on
-- "o& <lifetime ms>" before the keys of a hit: its verdict is stored under this key and shared.
--
-- Returns three numbers for each key, in microseconds: wait, remaining, reset. If a hit failed, its
-- numbers are -1, <which error>, 0, and a list of the numbers and the errors is returned.

local answers, size = {}, 0
local function add(wait, remaining, reset)
  answers[size + 1], answers[size + 2], answers[size + 3] = wait, remaining, reset
  size = size + 3
end

-- Nearly all hits are single fixed windows: two commands, without creating a table. In any unusual
-- case the counter gets its old value back, false is returned, and the code below decides.
local spec, amount, period, price, ms, cost -- ms and cost are strings, as they came in
local function simple_hit(key, text)
  if text ~= spec then
    spec = text
    amount, ms, cost = string.match(text, '^f (%d+) (%d+) (%d+)$')
    amount, period, price = tonumber(amount or 0), tonumber(ms or 0), tonumber(cost or 1)
  end
  if price > amount then return false end
  local count = redis.pcall('INCRBY', key, cost)
  if type(count) ~= 'number' then return false end
  if count == price then
    redis.call('PEXPIRE', key, ms)
    add(0, amount - count, period * 1000)
    return true
  end
  local left = redis.call('PTTL', key)
  if left > 0 and left <= period and count > price and count < 1e15 then
    if count <= amount then
      add(0, amount - count, left * 1000)
      return true
    elseif count - price >= amount then -- a full window still counts attempts
      add(left * 1000, 0, left * 1000)
      return true
    end
  end
  redis.call('DECRBY', key, cost)
  return false
end

local first = 1
while first <= #KEYS and simple_hit(KEYS[first], ARGV[first]) do first = first + 1 end
if first > #KEYS then return answers end

local algorithms, clock, reading, failures = {}, nil, nil, {}

local function now() -- microseconds
  if not clock then
    local time = redis.call('TIME')
    clock = time[1] * 1000000 + time[2]
  end
  return clock
end

-- Numbers as Redis takes them, also from a Lua that writes 5.0 for a float.
local function whole(number) return string.format('%.0f', number) end

local function foreign() error("WRONGTYPE '" .. reading .. "' holds something else", 0) end

--[[ fixed_window.lua ]]
--[[ sliding_window.lua ]]
--[[ token_bucket.lua ]]
--[[ penalty.lua ]]
local specs = {}

local function terms_of(text)
  if specs[text] then return specs[text] end
  local kind, flags = string.match(text, '^(%a)(%p*)')
  local function has(flag) return string.find(flags, flag, 1, true) ~= nil end
  local terms = {
    algorithm = algorithms[kind], peek = has('?') or has('!'), forgets = has('!'),
    shadow = has('~'), imposed = has('@'),
  }
  for number in string.gmatch(text, '%d+') do terms[#terms + 1] = tonumber(number) end
  terms.amount, terms.period, terms.cost = terms[1], terms[2], terms[3]
  specs[text] = { __index = terms }
  return specs[text]
end

local function read_rule(i, cost)
  local rule = setmetatable({ key = KEYS[i] }, terms_of(ARGV[i]))
  reading = rule.key
  rule.algorithm.read(rule)
  rule.wait = rule.algorithm.wait(rule, cost or rule.cost)
  return rule
end

local function settle(rule, refused)
  local algorithm = rule.algorithm
  if rule.endless and not rule.peek then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
  if algorithm.strike then
    if rule.imposed and not rule.peek then
      algorithm.impose(rule)
    elseif refused and not rule.forgets then
      algorithm.strike(rule)
    end
  elseif rule.peek then
    return
  elseif rule.wait > 0 then
    algorithm.refuse(rule, rule.cost)
  elseif not refused then
    algorithm.charge(rule, rule.cost)
  end
end

-- Either all rules of a hit are charged or none. Nothing is written before all have been read.
local function decide(from, to)
  local rules, refused = {}, false
  for i = from, to do
    local rule = read_rule(i)
    rules[#rules + 1] = rule
    if rule.wait > 0 and not rule.shadow then refused = true end
  end
  for _, rule in ipairs(rules) do
    settle(rule, refused)
    rule.remaining, rule.reset = rule.algorithm.report(rule)
    if rule.forgets then redis.call('DEL', rule.key) end
  end
  return rules
end

-- Charge even above the limit, or refund. Returns what a next hit of cost 1 would get.
local function adjust(from, to)
  local act = string.find(ARGV[from], '-', 1, true) and 'refund' or 'charge'
  local rules = {}
  for i = from, to do rules[#rules + 1] = read_rule(i, 0) end
  for i, rule in ipairs(rules) do
    if rule.endless then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
    rule.algorithm[act](rule, rule.cost)
    rules[i] = read_rule(from + i - 1, 1)
    rules[i].remaining, rules[i].reset = rule.algorithm.report(rules[i])
  end
  return rules
end

-- Hits with the same token share one verdict; the elapsed time is subtracted from its times.
local function shared(text, passed)
  local rules = {}
  for wait, remaining, reset in string.gmatch(text, '(%d+) (%d+) (%d+)') do
    wait = tonumber(wait) > 0 and math.max(1, wait - passed) or 0
    reset = math.max(0, reset - passed)
    rules[#rules + 1] = { wait = wait, remaining = tonumber(remaining), reset = reset }
  end
  return rules
end

local function decide_once(from, to)
  local key, lifetime = KEYS[from], tonumber(string.match(ARGV[from], '%d+'))
  reading = key
  local text, left = redis.call('GET', key), redis.call('PTTL', key)
  if text and left > 0 then -- at 0 it still exists, but its time is over
    local _, numbers = string.gsub(text, '%d+', '')
    if numbers ~= 3 * (to - from) or string.find(text, '[^%d ]') then foreign() end
    return shared(text, (lifetime - left) * 1000)
  end
  local rules, kept = decide(from + 1, to), {}
  for i, rule in ipairs(rules) do -- later hits are refused by a ban that this hit caused
    local wait = rule.algorithm.strike and rule.remaining == 0 and rule.reset or rule.wait
    kept[i] = string.format('%.0f %.0f %.0f', wait, rule.remaining, rule.reset)
  end
  redis.call('SET', key, table.concat(kept, ' '), 'PX', lifetime)
  return rules
end

-- The other hits of the call are not affected if one fails.
local function failed(reason, count)
  reason = type(reason) == 'table' and reason.err or tostring(reason)
  if string.find(reason, 'WRONGTYPE', 1, true) and not string.find(reason, reading, 1, true) then
    reason = "WRONGTYPE '" .. reading .. "' holds something else"
  end
  failures[#failures + 1] = reason
  for _ = 1, count do add(-1, #failures - 1, 0) end
end

while first <= #KEYS do
  local last = first
  if not simple_hit(KEYS[first], ARGV[first]) then
    while string.find(ARGV[last], '&', 1, true) do last = last + 1 end
    local act, count = decide, last - first + 1
    if string.sub(ARGV[first], 1, 1) == 'o' then
      act, count = decide_once, count - 1
    elseif string.find(ARGV[first], '^%a%p*[+-]') then
      act = adjust
    end
    local ok, rules = pcall(act, first, last)
    if ok then
      for _, rule in ipairs(rules) do add(rule.wait, rule.remaining, rule.reset) end
    else
      failed(rules, count)
    end
  end
  first = last + 1
end
return failures[1] and { answers, (unpack or table.unpack)(failures) } or answers
