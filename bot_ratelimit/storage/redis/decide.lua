-- Decides any number of hits in one call: the same algorithms as algorithms.py, on the server.
--
-- ARGV[i] says what to do with KEYS[i]:
--   "<kind><flags> <amount> <period ms> <burst> <cost>", and for a refund " <age us>" of the charge
--     kind   f fixed window, s sliding window, b token bucket
--            p penalty; its last two numbers are <ban ms> <longest ban ms, 0 if it does not grow>
--     flags  & decided together with the next key, ? peek and charge nothing, ! peek, then delete,
--            ~ shadow, @ penalty: the ban begins now, unless a longer one is in force,
--            + charge even above the limit, - refund
--   "o& <lifetime ms>" before the keys of a hit: its verdict is stored under this key and shared
--   "g <lifetime ms>" after the keys of a shared hit or a reset, one for each of them: the number
--   of resets of that count. A shared verdict that is older than the last reset is not used.
--
-- Returns a string of three numbers for each rule: wait, remaining, reset (in microseconds). If a
-- hit failed, its numbers are "-1 <which error> 0", and a list of the string and the errors is
-- returned. "-2 <which error> 0" is a shadow rule that could not be decided; its hit was decided
-- without it.

local failures = {}

local function failed(reason)
  failures[#failures + 1] = type(reason) == 'table' and reason.err or tostring(reason)
  return #failures - 1
end

-- Everything except a single fixed window. These functions are created only in calls that need
-- them.
local function everything_else()
  local clock
  local function now()
    if not clock then
      local time = redis.call('TIME')
      clock = time[1] * 1000000 + time[2]
    end
    return clock
  end

  -------------------------------------------------------------------------------------------------
  -- What is stored. Only values in exactly the format of this script are treated as ours. A limit
  -- whose algorithm was changed finds a value of another algorithm and ignores it. Anything else is
  -- foreign data and is not touched.

  local function foreign(key)
    error("WRONGTYPE '" .. key .. "' holds something else", 0)
  end

  local function is_counter(text)
    return text == '0' or #text < 16 and string.find(text, '^[1-9]%d*$')
  end

  local function time_in(text) -- microseconds, parts of one, parts in one, the debt
    local seconds, micros, rest = string.match(text, '^(%d+)%.(%d%d%d%d%d%d)(.*)$')
    if not seconds or #seconds > 10 then return nil end
    local exact, owed = string.match(rest, '^(.*) %+(%d+)$')
    if owed and #owed > 7 then return nil end
    rest, owed = exact or rest, tonumber(owed or 0)
    if rest == '' then return seconds * 1000000 + micros, 0, 0, owed end
    local part, parts = string.match(rest, '^ (%d+)/(%d+)$')
    if not part or #parts > 7 then return nil end
    return seconds * 1000000 + micros, tonumber(part), tonumber(parts), owed
  end

  local function debt_in(text) -- of a fixed window: count, owed, amount, period, lifetime
    local numbers = { string.match(text, '^(%d+) %+(%d+) (%d+)/(%d+) (%d+)$') }
    for i, number in ipairs(numbers) do
      if #number > 15 then return nil end
      numbers[i] = tonumber(number)
    end
    return numbers[5] and numbers
  end

  local function debt_of_log(member) -- the debt, and how long before its score it began
    local owed, before = string.match(member or '', '^owed (%d+) (%d+)$')
    if not owed or #owed > 7 or #before > 16 then return nil end
    return tonumber(owed), tonumber(before)
  end

  -- What a limit grants in 366 days, but at most a million.
  local function max_debt(rule)
    return math.min(1000000, rule.amount * math.floor(31622400000 / rule.period))
  end

  local function entry(key, found)
    if not found[1] then return nil end
    local total, cost = string.match(found[1], '^(%d+) (%d+)$')
    local at = tonumber(found[2])
    if not total or #total ~= 16 or at % 1 > 0 then foreign(key) end
    return { at = at, total = tonumber(total), cost = tonumber(cost) }
  end

  local function wrong_type(reply)
    if type(reply) ~= 'table' or not reply.err then return false end
    if not string.find(tostring(reply.err), 'WRONGTYPE', 1, true) then error(reply.err, 0) end
    return true
  end

  local function stored_text(key)
    local value = redis.pcall('GET', key)
    if wrong_type(value) then
      if redis.call('TYPE', key).ok ~= 'zset' then foreign(key) end
      local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
      if not debt_of_log(newest[1]) then entry(key, newest) end
      return false
    end
    if value and not is_counter(value) and not time_in(value) and not debt_in(value) then
      foreign(key)
    end
    return value
  end

  -------------------------------------------------------------------------------------------------
  -- Fixed window: a counter. For an operator, GET shows the attempts and TTL the rest of the
  -- window.

  local fixed = {}

  local function read_counter(rule, longest)
    local value = stored_text(rule.key)
    rule.count, rule.left = 0, rule.period
    if not value or not is_counter(value) then return value end
    local left = redis.call('PTTL', rule.key)
    if left < 0 then -- no TTL: another writer died before it set one
      left, rule.endless = rule.period, true
    elseif left > longest then -- of a longer limit: shortened when this one counts
      left, rule.shortened = longest, true
    end
    -- At 0 the key still exists, but the window is over.
    if left > 0 then rule.count, rule.left = tonumber(value), left end
  end

  -- More was charged than the window grants: "<count> +<owed> <amount>/<period> <lifetime>". Each
  -- following window pays `amount`. The TTL is the rest of all these windows, out of <lifetime>.
  local function read_debt(rule, debt)
    local count, owed, amount, period, lifetime = (unpack or table.unpack)(debt)
    local total = redis.call('PTTL', rule.key)
    if total < 0 then total, rule.endless = lifetime, true end
    if total == 0 then return end
    local later = math.ceil(owed / amount)
    local left = total - later * period
    if left <= 0 then
      local windows = math.ceil(total / period)
      owed = owed - (later - windows) * amount
      count = math.min(amount, owed)
      owed, left = owed - count, total - (windows - 1) * period
    end
    local paid = math.min(owed, math.max(0, rule.amount - count))
    rule.count, rule.owed = count + paid, math.min(owed - paid, max_debt(rule))
    rule.left, rule.age = math.min(left, rule.period), math.max(0, lifetime - total)
    rule.debt = true
  end

  local function total_left(rule)
    return rule.left + math.ceil(rule.owed / rule.amount) * rule.period
  end

  local function write_window(rule)
    local value, left = string.format('%.0f', rule.count), total_left(rule)
    if rule.owed > 0 then
      value = string.format('%s +%.0f %.0f/%.0f %.0f',
        value, rule.owed, rule.amount, rule.period, rule.age + left)
    end
    if rule.count == 0 then redis.call('DEL', rule.key) return end
    redis.call('SET', rule.key, value, 'PX', string.format('%.0f', left))
  end

  function fixed.read(rule)
    rule.owed, rule.debt = 0, nil
    local debt = debt_in(read_counter(rule, rule.period) or '')
    if debt then read_debt(rule, debt) end
    if rule.count + rule.cost > rule.amount then
      rule.wait = rule.left * 1000
      if rule.owed > 0 then
        local last = (rule.owed - 1) % rule.amount + 1
        local later = math.floor((rule.owed - 1) / rule.amount)
        if last + rule.cost > rule.amount then later = later + 1 end
        rule.wait = (rule.left + later * rule.period) * 1000
      end
    end
  end

  function fixed.charge(rule)
    rule.count = rule.count + rule.cost
    if rule.debt then
      write_window(rule)
    elseif rule.count == rule.cost then
      redis.call('SET', rule.key, rule.cost, 'PX', rule.period)
    else
      redis.call('INCRBY', rule.key, rule.cost)
      if rule.shortened then redis.call('PEXPIRE', rule.key, rule.left) end
    end
  end

  function fixed.refuse(rule)
    if rule.count >= rule.amount then
      fixed.charge(rule)
    elseif rule.shortened then
      redis.call('PEXPIRE', rule.key, rule.left)
    end
  end

  function fixed.force_charge(rule)
    local paid = rule.owed > 0 and 0 or math.min(rule.price, math.max(0, rule.amount - rule.count))
    rule.count = rule.count + paid
    rule.owed = math.min(rule.owed + rule.price - paid, max_debt(rule))
    rule.age = rule.age or rule.period - rule.left
    write_window(rule)
  end

  function fixed.refund(rule)
    local age = rule.age or rule.period - rule.left
    if rule.count == 0 or age < math.floor(rule.charged_ago / 1000) then return end
    rule.age = age
    local back = math.min(rule.price, rule.owed)
    rule.owed = rule.owed - back
    if rule.price > back then -- attempts above the amount were never charged
      rule.count = math.max(0, math.min(rule.count, rule.amount) - (rule.price - back))
    end
    write_window(rule)
  end

  function fixed.report(rule)
    return math.max(0, rule.amount - rule.count), rule.count > 0 and total_left(rule) * 1000 or 0
  end

  -------------------------------------------------------------------------------------------------
  -- Penalty: a counter of refused hits. When it reaches the amount, its TTL becomes the ban.

  local penalty = { counts_refusals = true }

  function penalty.read(rule)
    rule.ban, rule.longest = rule.burst, rule.cost
    read_counter(rule, math.max(rule.period, rule.ban, rule.longest))
    if rule.count >= rule.amount then rule.wait = rule.left * 1000 end
  end

  -- Also used by a peek, which reports the ban that the hit would cause but writes nothing.
  function penalty.charge(rule)
    rule.count = rule.count + 1
    local times, ban = rule.count / rule.amount, nil
    if times == 1 then
      ban = rule.ban
    elseif rule.count % rule.amount == 0 and rule.longest > 0 then
      ban = math.min(rule.ban * 2 ^ math.min(times - 1, 40), rule.longest)
    end
    rule.left = ban or rule.count == 1 and rule.period or rule.left
    if rule.peek then return end
    local left = string.format('%.0f', rule.left)
    if rule.count == 1 then
      redis.call('SET', rule.key, 1, 'PX', left)
    else
      redis.call('INCR', rule.key)
      if ban or rule.shortened then redis.call('PEXPIRE', rule.key, left) end
    end
  end

  -- Of two bans the one that ends later wins, so that the order in which instances report them does
  -- not matter.
  function penalty.impose(rule)
    if rule.count >= rule.amount and rule.left >= rule.ban then return end
    rule.count, rule.left = rule.amount, rule.ban
    redis.call('SET', rule.key, rule.amount, 'PX', string.format('%.0f', rule.ban))
  end

  function penalty.report(rule)
    return math.max(0, rule.amount - rule.count), rule.count > 0 and rule.left * 1000 or 0
  end

  -------------------------------------------------------------------------------------------------
  -- Sliding window: a sorted set of the charged hits; the score is the time. A member is "<total
  -- charged so far> <its cost>", zero-padded so that members with equal times stay in order. The
  -- difference of two totals is what was charged between them, without adding up the members.

  local sliding = {}

  local function entry_at(rule, rank)
    return entry(rule.key, redis.call('ZRANGE', rule.key, rank, rank, 'WITHSCORES'))
  end

  -- A debt is the last member, "owed <amount> <how long before its score it began>". It is paid as
  -- soon as there is room in the log. The payments are calculated when the log is read, and written
  -- by the next charge.
  local function pay_debt(rule, hits, owed, ends)
    local period, amount = rule.period * 1000, rule.amount
    local log, first, used = {}, 1, 0
    for i, hit in ipairs(hits) do
      log[i], used = { at = hit.at, cost = hit.cost }, used + hit.cost
    end
    local latest = log[1] and log[#log].at or 0
    while owed > 0 do
      local rounds = 0
      if used == amount then
        rounds = math.floor(owed / amount)
        if ends then rounds = math.min(rounds, math.floor((ends - log[#log].at) / period)) end
      end
      if used < amount then
        local paid = math.min(owed, amount - used)
        log[#log + 1] = { at = latest, cost = paid }
        used, owed = used + paid, owed - paid
      elseif rounds > 0 then
        for i = first, #log do log[i].at = log[i].at + rounds * period end
        latest, owed = latest + rounds * period, owed - rounds * amount
      else
        local leaves = log[first].at + period
        if ends and leaves > ends then break end
        used, first = used - log[first].cost, first + 1
        latest = math.max(latest, leaves)
      end
    end
    local left = {}
    for i = first, #log do left[#left + 1] = log[i] end
    return left, owed
  end

  -- Reads the whole log, which a debt or a refund needs.
  local function read_log(rule, owed, before)
    local period, hits = rule.period * 1000, {}
    local found = redis.call('ZRANGE', rule.key, 0, -1, 'WITHSCORES')
    local count = #found / 2 - (before and 1 or 0)
    for i = 1, count do hits[i] = entry(rule.key, { found[2 * i - 1], found[2 * i] }) end
    rule.since = before and tonumber(found[#found]) - before
    rule.hits, rule.owed = {}, 0
    local last = hits[count]
    if redis.call('PTTL', rule.key) == 0 or last and last.at > now() + period then return end
    hits, rule.owed = pay_debt(rule, hits, math.min(owed, max_debt(rule)), now())
    for _, hit in ipairs(hits) do
      if hit.at > now() - period then rule.hits[#rule.hits + 1] = hit end
    end
  end

  local function sum_of(hits)
    local sum = 0
    for _, hit in ipairs(hits) do sum = sum + hit.cost end
    return sum
  end

  local function write_log(rule)
    local room = rule.amount - sum_of(rule.hits)
    local paid = math.max(0, math.min(rule.owed, room))
    local last = rule.hits[#rule.hits]
    if paid > 0 then
      rule.hits[#rule.hits + 1] = { at = math.max(now(), last and last.at or 0), cost = paid }
    end
    rule.owed = math.min(rule.owed - paid, max_debt(rule))
    redis.call('DEL', rule.key)
    local total = 0
    for _, hit in ipairs(rule.hits) do
      total = total + hit.cost
      redis.call('ZADD', rule.key, string.format('%.0f', hit.at),
        string.format('%016.0f %.0f', total, hit.cost))
    end
    if total == 0 then return end
    local future = pay_debt(rule, rule.hits, rule.owed, nil)
    local ends = future[#future].at
    if rule.owed > 0 then
      redis.call('ZADD', rule.key, string.format('%.0f', ends),
        string.format('owed %.0f %.0f', rule.owed, ends - rule.since))
    end
    local left = rule.period + math.ceil((ends - now()) / 1000) + 1
    redis.call('PEXPIRE', rule.key, string.format('%.0f', left))
  end

  local function read_indebted(rule, owed, before)
    local period = rule.period * 1000
    read_log(rule, owed, before)
    rule.indebted, rule.used = true, sum_of(rule.hits)
    local future = pay_debt(rule, rule.hits, rule.owed, nil)
    rule.last = future[1] and future[#future].at
    if rule.owed == 0 and rule.used + rule.cost <= rule.amount then return end
    local excess = sum_of(future) + rule.cost - rule.amount
    if excess <= 0 then -- the last payment of the debt leaves enough room
      rule.wait = rule.last - now()
      return
    end
    for _, hit in ipairs(future) do
      excess = excess - hit.cost
      if excess <= 0 then
        rule.wait = hit.at + period - now()
        return
      end
    end
  end

  function sliding.read(rule)
    rule.indebted, rule.outdated, rule.last = nil, nil, nil
    local period = rule.period * 1000
    rule.gone = string.format('%.0f', now() - period)
    rule.total, rule.used = 0, 0
    local newest = redis.pcall('ZRANGE', rule.key, -1, -1, 'WITHSCORES')
    if wrong_type(newest) then
      stored_text(rule.key)
      rule.outdated = true
      return
    end
    local owed, before = debt_of_log(newest[1])
    if owed then return read_indebted(rule, owed, before) end
    local last = entry(rule.key, newest)
    if not last then return end
    -- At 0 the key still exists, but its time is over. If the clock was set back, do not wait for
    -- it.
    if redis.call('PTTL', rule.key) == 0 or last.at > now() + period then
      rule.outdated = true
      return
    end
    rule.total = last.total
    local living = '(' .. rule.gone
    local first = entry(rule.key, redis.call(
      'ZRANGEBYSCORE', rule.key, living, '+inf', 'WITHSCORES', 'LIMIT', 0, 1))
    if not first then return end
    local before = first.total - first.cost
    rule.last, rule.used = last.at, last.total - before
    local excess = rule.used + rule.cost - rule.amount
    if excess <= 0 then return end
    -- Find the first entry whose expiry frees at least `excess`.
    local low = redis.call('ZCOUNT', rule.key, '-inf', rule.gone)
    local high = redis.call('ZCARD', rule.key) - 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if entry_at(rule, middle).total - before >= excess then
        high = middle
      else
        low = middle + 1
      end
    end
    rule.wait = entry_at(rule, low).at + period - now()
  end

  function sliding.charge(rule)
    if rule.indebted then -- the debt has been paid
      local last = rule.hits[#rule.hits]
      rule.last, rule.used = math.max(now(), last and last.at or 0), rule.used + rule.cost
      rule.hits[#rule.hits + 1] = { at = rule.last, cost = rule.cost }
      return write_log(rule)
    end
    if rule.outdated then
      redis.call('DEL', rule.key)
    else
      redis.call('ZREMRANGEBYSCORE', rule.key, '-inf', rule.gone)
    end
    rule.total, rule.used = rule.total + rule.cost, rule.used + rule.cost
    rule.last = math.max(now(), rule.last or 0)
    local member = string.format('%016.0f %.0f', rule.total, rule.cost)
    redis.call('ZADD', rule.key, string.format('%.0f', rule.last), member)
    -- One millisecond longer than the last entry counts, because a TTL does not count microseconds.
    redis.call('PEXPIRE', rule.key, rule.period + math.ceil((rule.last - now()) / 1000) + 1)
  end

  function sliding.refuse() end

  function sliding.force_charge(rule)
    if not rule.indebted and rule.used + rule.price <= rule.amount then
      rule.cost = rule.price
      return sliding.charge(rule)
    end
    if rule.outdated then
      rule.hits, rule.owed = {}, 0
    elseif not rule.indebted then
      read_log(rule, 0)
    end
    rule.since = rule.owed > 0 and rule.since or now()
    rule.owed = rule.owed + rule.price
    write_log(rule)
  end

  function sliding.refund(rule)
    if rule.outdated then return end
    if not rule.indebted then read_log(rule, 0) end
    local charged = now() - rule.charged_ago
    local in_debt = rule.owed > 0 and charged >= rule.since
    local left, kept = rule.price, {}
    if in_debt then left = left - math.min(left, rule.owed) end
    rule.owed = rule.owed - (rule.price - left)
    for i = #rule.hits, 1, -1 do
      local hit, less = rule.hits[i], 0
      -- Everything that was added since the debt began was a payment of it.
      if in_debt or hit.at <= charged then less = math.min(left, hit.cost) end
      left, hit.cost = left - less, hit.cost - less
      if hit.cost > 0 then table.insert(kept, 1, hit) end
    end
    if left == rule.price then return end
    rule.hits = kept
    write_log(rule)
  end

  function sliding.report(rule)
    local reset = rule.last and rule.last + rule.period * 1000 - now() or 0
    return math.max(0, rule.amount - rule.used), reset
  end

  -------------------------------------------------------------------------------------------------
  -- Token bucket: the theoretical arrival time, as "<seconds>.<microseconds>" and, if tokens do not
  -- come at whole microseconds, " <part>/<amount>" of a microsecond. In this script a time is a
  -- pair of whole microseconds and parts of `amount`, because their product would not fit into a
  -- double.

  local bucket = {}

  local function tokens(rule, count) -- the time in which `count` tokens are refilled
    local period = rule.period * 1000
    local whole, rest = math.floor(period / rule.amount), period % rule.amount
    return count * whole + math.floor(count * rest / rule.amount), count * rest % rule.amount
  end

  local function plus(rule, whole, part, more, more_part)
    whole, part = whole + more, part + more_part
    if part >= rule.amount then return whole + 1, part - rule.amount end
    if part < 0 then return whole - 1, part + rule.amount end
    return whole, part
  end

  function bucket.read(rule)
    local value = stored_text(rule.key)
    rule.whole, rule.part = 0, 0
    local full, full_part = tokens(rule, rule.burst)
    local at, part, parts, owed = time_in(value or '')
    rule.owed = owed and math.min(owed, max_debt(rule)) or 0
    local lowest, lowest_part = tokens(rule, rule.burst + rule.owed)
    if at then
      rule.whole, rule.part = at - now(), parts == rule.amount and part or 0
      if rule.whole < 0 then rule.whole, rule.part = 0, 0 end
      if rule.whole > lowest or rule.whole == lowest and rule.part > lowest_part then
        -- More is missing than the burst and the debt, because of a slower limit before, or a clock
        -- that was set back.
        rule.whole, rule.part, rule.shortened = lowest, lowest_part, true
      end
    end
    local taken, taken_part = tokens(rule, rule.cost)
    local whole, part = plus(rule, rule.whole, rule.part, taken, taken_part)
    whole, part = plus(rule, whole, part, -full, -full_part)
    if whole > 0 or whole == 0 and part > 0 then rule.wait = part > 0 and whole + 1 or whole end
  end

  -- By how many tokens, rounded up, the bucket is below empty.
  local function tokens_lacking(rule)
    local full, full_part = tokens(rule, rule.burst)
    local debt, debt_part = plus(rule, rule.whole, rule.part, -full, -full_part)
    if debt < 0 or debt == 0 and debt_part == 0 then return 0 end
    -- The quotient of such large numbers may be off by one; `covers` makes it exact.
    local count = math.ceil((debt * rule.amount + debt_part) / (rule.period * 1000))
    local function covers(owed)
      local whole, part = tokens(rule, owed)
      return whole > debt or whole == debt and part >= debt_part
    end
    if covers(count - 1) then return count - 1 end
    return covers(count) and count or count + 1
  end

  local function store(rule)
    local at = now() + rule.whole
    local value = string.format('%.0f.%06.0f', math.floor(at / 1000000), at % 1000000)
    if rule.part > 0 then value = value .. string.format(' %.0f/%.0f', rule.part, rule.amount) end
    local owed = tokens_lacking(rule)
    if owed > 0 then value = value .. string.format(' +%.0f', owed) end
    local lifetime = string.format('%.0f', math.ceil(rule.whole / 1000) + 1)
    redis.call('SET', rule.key, value, 'PX', lifetime)
  end

  function bucket.charge(rule)
    rule.whole, rule.part = plus(rule, rule.whole, rule.part, tokens(rule, rule.cost))
    store(rule)
  end

  function bucket.refuse(rule)
    if rule.shortened then store(rule) end
  end

  function bucket.force_charge(rule)
    local most = rule.burst + max_debt(rule)
    local lowest, lowest_part = tokens(rule, most)
    local taken, taken_part = tokens(rule, math.min(rule.price, most))
    rule.whole, rule.part = plus(rule, rule.whole, rule.part, taken, taken_part)
    if rule.whole > lowest or rule.whole == lowest and rule.part > lowest_part then
      rule.whole, rule.part = lowest, lowest_part
    end
    store(rule)
  end

  function bucket.refund(rule)
    if rule.whole == 0 and rule.part == 0 then return end
    local most = rule.burst + rule.owed
    local lowest, lowest_part = tokens(rule, most)
    if rule.charged_ago > lowest or rule.charged_ago == lowest and lowest_part == 0 then return end
    local back, back_part = tokens(rule, math.min(rule.price, most))
    rule.whole, rule.part = plus(rule, rule.whole, rule.part, -back, -back_part)
    if rule.whole < 0 or rule.whole == 0 and rule.part == 0 then
      redis.call('DEL', rule.key)
    else
      store(rule)
    end
  end

  function bucket.report(rule)
    local full, full_part = tokens(rule, rule.burst)
    local room, room_part = plus(rule, full, full_part, -rule.whole, -rule.part)
    if room < 0 then return 0, rule.part > 0 and rule.whole + 1 or rule.whole end
    -- The quotient of such large numbers may be off by one; `fits` makes it exact.
    local remaining = math.floor((room * rule.amount + room_part) / (rule.period * 1000))
    local function fits(count)
      local whole, part = tokens(rule, count)
      return whole < room or whole == room and part <= room_part
    end
    if fits(remaining + 1) then
      remaining = remaining + 1
    elseif not fits(remaining) then
      remaining = remaining - 1
    end
    return remaining, rule.part > 0 and rule.whole + 1 or rule.whole
  end

  -------------------------------------------------------------------------------------------------

  local algorithms = { f = fixed, s = sliding, b = bucket, p = penalty }
  local specs = {}

  local function spec(text)
    local found = specs[text]
    if not found then
      local kind, flags, amount, period, burst, cost, age =
        string.match(text, '^(%a)(%p*) (%d+) (%d+) (%d+) (%d+) ?(%d*)$')
      local terms = {
        algorithm = algorithms[kind],
        peek = string.find(flags, '[?!]'), reset = string.find(flags, '!', 1, true),
        shadow = string.find(flags, '~', 1, true), imposed = string.find(flags, '@', 1, true),
        amount = tonumber(amount), period = tonumber(period),
        burst = tonumber(burst), cost = tonumber(cost), charged_ago = tonumber(age) or 0,
      }
      found = { __index = terms }
      specs[text] = found
    end
    return found
  end

  -- A shadow rule that cannot be decided must not affect the hit, not even by its error.
  local function attempt(rule, step)
    if not rule.shadow then return rule.algorithm[step](rule) end
    if rule.broken then return end
    local ok, reason = pcall(rule.algorithm[step], rule)
    if not ok then rule.broken, rule.wait = reason, 0 end
  end

  local function charge(rule, refused)
    if rule.endless then redis.call('PEXPIRE', rule.key, total_left(rule)) end
    if rule.wait > 0 then
      attempt(rule, 'refuse')
    elseif not refused then
      attempt(rule, 'charge')
    end
  end

  local function verdicts(rule)
    if rule.broken then
      local capacity = math.max(rule.amount, rule.burst)
      return '-2 ' .. failed(rule.broken) .. ' 0', string.format('0 %.0f 0', capacity)
    end
    local remaining, reset = rule.algorithm.report(rule)
    local verdict = string.format('%.0f %.0f %.0f', rule.wait, remaining, reset)
    -- Later hits with the same token are refused by a ban that this hit caused.
    local banned = rule.algorithm.counts_refusals and remaining == 0
    return verdict, banned and string.format('%.0f 0 %.0f', reset, reset) or verdict
  end

  -- Either all rules of a hit are charged or none. Nothing is written before all have been read.
  local function decide(first, last)
    local rules, refused = {}, false
    for i = first, last do
      local rule = setmetatable({ key = KEYS[i], wait = 0 }, spec(ARGV[i]))
      rules[#rules + 1] = rule
      attempt(rule, 'read')
      if rule.wait > 0 and not rule.shadow then refused = true end
    end
    local out, shared = {}, {}
    for i, rule in ipairs(rules) do
      if rule.algorithm.counts_refusals then
        if rule.endless and not rule.peek then redis.call('PEXPIRE', rule.key, rule.left) end
        if rule.imposed and not rule.peek then
          rule.algorithm.impose(rule)
        elseif refused and not rule.reset then
          rule.algorithm.charge(rule)
        end
      elseif not rule.peek then
        charge(rule, refused)
      end
      out[i], shared[i] = verdicts(rule)
    end
    return table.concat(out, ' '), table.concat(shared, ' '), rules
  end

  -- Load a shared verdict: three numbers for each rule, and after a "|" the number of resets of
  -- each count at that time, if any.
  local function load_shared(key, count)
    local kept, left = redis.call('GET', key), redis.call('PTTL', key)
    if not kept or left <= 0 then return nil end -- at 0 it still exists, but its time is over
    local numbers, rest = string.match(kept, '^([%d ]+)|?([%d ]*)$')
    local stored, resets = {}, {}
    for verdict in string.gmatch(numbers or '', '%d+ %d+ %d+') do stored[#stored + 1] = verdict end
    for each in string.gmatch(rest or '', '%d+') do resets[#resets + 1] = each end
    if #stored ~= count or table.concat(stored, ' ') ~= numbers then foreign(key) end
    return stored, resets, left
  end

  -- Hits with the same token share one verdict; the elapsed time is subtracted from its times.
  local function decide_once(first, last)
    local lifetime, count = tonumber(string.match(ARGV[first], '%d+')), (last - first) / 2
    local resets = redis.call('MGET', (unpack or table.unpack)(KEYS, first + count + 1, last))
    local stored, seen, left = load_shared(KEYS[first], count)
    for i = 1, count do
      if stored and resets[i] and resets[i] ~= (seen[i] or '0') then stored = nil end
    end
    if stored then
      local passed = (lifetime - left) * 1000
      for i, verdict in ipairs(stored) do
        local wait, remaining, reset = string.match(verdict, '(%d+) (%d+) (%d+)')
        if tonumber(wait) > 0 then wait = math.max(1, wait - passed) end
        stored[i] = string.format(
          '%.0f %.0f %.0f', wait, remaining, math.max(0, reset - passed))
      end
      return table.concat(stored, ' ')
    end
    local verdict, shared = decide(first + 1, first + count)
    local marks, any = {}, false
    for i = 1, count do
      marks[i] = resets[i] or '0'
      if resets[i] then -- it must live at least as long as the verdict that refers to it
        any = true
        redis.call('PEXPIRE', KEYS[first + count + i], lifetime)
      end
    end
    if any then shared = shared .. '|' .. table.concat(marks, ' ') end
    redis.call('SET', KEYS[first], shared, 'PX', lifetime)
    return verdict
  end

  -- Delete these counts and make the shared verdicts on them invalid. Returns the same as a peek.
  local function reset(first, last)
    local count = (last - first + 1) / 2
    local verdict, _, rules = decide(first, first + count - 1)
    for i, rule in ipairs(rules) do
      local resets = KEYS[first + count + i - 1]
      redis.call('INCR', resets)
      redis.call('PEXPIRE', resets, string.match(ARGV[first + count + i - 1], '%d+'))
      if not rule.broken then redis.call('DEL', rule.key) end
    end
    return verdict
  end

  -- Charge even above the limit, or refund. Returns the verdicts of a next hit of cost 1.
  local function adjust(first, last)
    local step = string.find(ARGV[first], '-', 1, true) and 'refund' or 'force_charge'
    local rules, out = {}, {}
    for i = first, last do
      local rule = setmetatable({ key = KEYS[i], wait = 0, cost = 1 }, spec(ARGV[i]))
      rule.price = getmetatable(rule).__index.cost
      rules[#rules + 1] = rule
      attempt(rule, 'read')
    end
    for i, rule in ipairs(rules) do
      if rule.endless then redis.call('PEXPIRE', rule.key, total_left(rule)) end
      attempt(rule, step)
      local after = setmetatable({ key = rule.key, wait = 0, cost = 1 }, getmetatable(rule))
      after.broken = rule.broken
      attempt(after, 'read')
      out[i] = verdicts(after)
    end
    return table.concat(out, ' ')
  end

  return decide, decide_once, reset, adjust
end

local decide, decide_once, reset, adjust
local answers, first = {}, 1
local spec, amount, period, cost, price, ms -- ms and cost are strings, as they came in
while first <= #KEYS do
  local last, answer = first, nil

  -- Nearly all hits are single fixed windows: two commands, without creating a table or a function.
  -- In any unusual case, the counter gets its old value back and the code below decides.
  if ARGV[first] ~= spec then
    spec = ARGV[first]
    amount, ms, cost = string.match(spec, '^f (%d+) (%d+) %d+ (%d+)$')
    if amount then
      amount, period, price = amount + 0, ms + 0, cost + 0
      if price > amount then amount = nil end
    end
  end
  local count = amount and redis.pcall('INCRBY', KEYS[first], cost)
  if type(count) == 'number' then
    if count == price then
      redis.call('PEXPIRE', KEYS[first], ms)
      answer = '0 ' .. amount - count .. ' ' .. ms .. '000'
    else
      local left = redis.call('PTTL', KEYS[first])
      -- A negative count, or one with more digits than a double has, is not ours.
      local usual = left > 0 and left <= period and count > price and count < 1e15
      if usual and count <= amount then
        answer = '0 ' .. amount - count .. ' ' .. left .. '000'
      elseif usual and count - price >= amount then -- a full window still counts attempts
        answer = left .. '000 0 ' .. left .. '000'
      else
        redis.call('INCRBY', KEYS[first], '-' .. cost)
      end
    end
  end

  if answer and #KEYS == 1 then return answer end
  if not answer then
    if not decide then decide, decide_once, reset, adjust = everything_else() end
    while string.find(ARGV[last], '&', 1, true) do last = last + 1 end
    local ok
    local act, rules = decide, last - first + 1
    if string.sub(spec, 1, 1) == 'o' then
      act, rules = decide_once, (last - first) / 2
    elseif string.find(spec, '!', 1, true) then
      act, rules = reset, rules / 2
    elseif string.find(spec, '^%a%p*[+-]') then
      act = adjust
    end
    ok, answer = pcall(act, first, last)
    if not ok then -- the other hits of this call are not affected
      answer = string.rep('-1 ' .. failed(answer) .. ' 0 ', rules)
    end
  end
  answers[#answers + 1] = answer
  first = last + 1
end
local text = table.concat(answers, ' ')
return failures[1] and { text, (unpack or table.unpack)(failures) } or text
