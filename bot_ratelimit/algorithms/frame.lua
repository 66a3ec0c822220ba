-- Decides any number of hits in one call. The files beside this one are joined into it; each is the
-- twin of a Python file with the same name.
--
-- ARGV[i] says what to do with KEYS[i]: "<kind><flags> <amount> <period ms> <cost> <more>"
--   kind   f fixed window; c the same until the end of a day, week or month, <more> are the next
--          three ends in ms; s sliding window; b token bucket, <more> is the burst;
--          p penalty, <more> are the ban and the longest ban in ms, the latter 0 if it never grows
--   flags  & decided together with the next key, ? peek, ! peek and delete, + charge even above the
--          limit, - refund, ~ shadow, @ penalty: the ban begins now, unless a longer one is in force
-- "o& <lifetime ms>" before the keys of a hit: its verdict is stored under this key and shared.
--
-- Returns a string of three numbers for each key, in microseconds: wait, remaining, reset. If a hit
-- failed, its numbers are "-1 <which error> 0", and a list of the string and the errors is returned.

-- Nearly all hits are single fixed windows: two commands, without creating a table. In any unusual
-- case the counter gets its old value back, nil is returned, and the code below decides.
local spec, amount, period, price, ms, cost -- ms and cost are strings, as they came in
local function simple_hit(key, text)
  if text ~= spec then
    spec = text
    amount, ms, cost = string.match(text, '^f (%d+) (%d+) (%d+)$')
    amount, period, price = tonumber(amount or 0), tonumber(ms or 0), tonumber(cost or 1)
  end
  if price > amount then return nil end
  local count = redis.pcall('INCRBY', key, cost)
  if type(count) ~= 'number' then return nil end
  if count == price then
    redis.call('PEXPIRE', key, ms)
    return '0 ' .. amount - count .. ' ' .. ms .. '000'
  end
  local left = redis.call('PTTL', key)
  if left > 0 and left <= period and count > price and count < 1e15 then
    if count <= amount then return '0 ' .. amount - count .. ' ' .. left .. '000' end
    -- A full window still counts attempts.
    if count - price >= amount then return left .. '000 0 ' .. left .. '000' end
  end
  redis.call('DECRBY', key, cost)
  return nil
end

local answers, first = {}, 1
while KEYS[first] do
  local answer = simple_hit(KEYS[first], ARGV[first])
  if not answer then break end
  answers[first] = answer
  first = first + 1
end
if first > #KEYS then return table.concat(answers, ' ') end

---------------------------------------------------------------------------------------------------

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
---------------------------------------------------------------------------------------------------

local specs = {}

local function terms_of(text)
  if specs[text] then return specs[text] end
  local kind, flags = string.match(text, '^(%a)(%p*)')
  local function has(flag) return string.find(flags, flag, 1, true) ~= nil end
  local terms = {
    algorithm = algorithms[kind], peek = has('?') or has('!'), reset = has('!'),
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

local function verdict(rule)
  local remaining, reset = rule.algorithm.report(rule)
  return string.format('%.0f %.0f %.0f', rule.wait, remaining, reset)
end

local function settle(rule, refused)
  local algorithm = rule.algorithm
  if rule.endless and not rule.peek then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
  if algorithm.strike then
    if rule.imposed and not rule.peek then
      algorithm.impose(rule)
    elseif refused and not rule.reset then
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
  local rules, refused, out = {}, false, {}
  for i = from, to do
    local rule = read_rule(i)
    rules[#rules + 1] = rule
    if rule.wait > 0 and not rule.shadow then refused = true end
  end
  for i, rule in ipairs(rules) do
    settle(rule, refused)
    out[i] = verdict(rule)
    if rule.reset then redis.call('DEL', rule.key) end
  end
  return table.concat(out, ' '), rules
end

-- Charge even above the limit, or refund. Returns the verdicts of a next hit of cost 1.
local function adjust(from, to)
  local act = string.find(ARGV[from], '-', 1, true) and 'refund' or 'charge'
  local rules, out = {}, {}
  for i = from, to do rules[#rules + 1] = read_rule(i, 0) end
  for i, rule in ipairs(rules) do
    if rule.endless then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
    rule.algorithm[act](rule, rule.cost)
    out[i] = verdict(read_rule(from + i - 1, 1))
  end
  return table.concat(out, ' ')
end

-- Hits with the same token share one verdict; the elapsed time is subtracted from its times.
local function aged(shared, passed)
  return (string.gsub(shared, '(%d+) (%d+) (%d+)', function(wait, remaining, reset)
    if tonumber(wait) > 0 then wait = math.max(1, wait - passed) end
    return string.format('%.0f %s %.0f', wait, remaining, math.max(0, reset - passed))
  end))
end

local function decide_once(from, to)
  local key, lifetime = KEYS[from], tonumber(string.match(ARGV[from], '%d+'))
  reading = key
  local shared, left = redis.call('GET', key), redis.call('PTTL', key)
  if shared and left > 0 then -- at 0 it still exists, but its time is over
    local _, numbers = string.gsub(shared, '%d+', '')
    if numbers ~= 3 * (to - from) or string.find(shared, '[^%d ]') then foreign() end
    return aged(shared, (lifetime - left) * 1000)
  end
  local answer, rules = decide(from + 1, to)
  for i, rule in ipairs(rules) do -- later hits are refused by a ban that this hit caused
    local remaining, reset = rule.algorithm.report(rule)
    if rule.algorithm.strike and remaining == 0 then rule.wait = reset end
    rules[i] = verdict(rule)
  end
  redis.call('SET', key, table.concat(rules, ' '), 'PX', lifetime)
  return answer
end

-- The other hits of the call are not affected if one fails.
local function failed(reason, count)
  reason = type(reason) == 'table' and reason.err or tostring(reason)
  if string.find(reason, 'WRONGTYPE', 1, true) and not string.find(reason, reading, 1, true) then
    reason = "WRONGTYPE '" .. reading .. "' holds something else"
  end
  failures[#failures + 1] = reason
  return string.sub(string.rep('-1 ' .. #failures - 1 .. ' 0 ', count), 1, -2)
end

while first <= #KEYS do
  local answer = simple_hit(KEYS[first], ARGV[first])
  local last = first
  if not answer then
    while string.find(ARGV[last], '&', 1, true) do last = last + 1 end
    local act, count = decide, last - first + 1
    if string.sub(ARGV[first], 1, 1) == 'o' then
      act, count = decide_once, count - 1
    elseif string.find(ARGV[first], '^%a%p*[+-]') then
      act = adjust
    end
    local ok
    ok, answer = pcall(act, first, last)
    if not ok then answer = failed(answer, count) end
  end
  answers[#answers + 1] = answer
  first = last + 1
end
local text = table.concat(answers, ' ')
return failures[1] and { text, (unpack or table.unpack)(failures) } or text
