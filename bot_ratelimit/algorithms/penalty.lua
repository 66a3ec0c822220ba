-- Penalty: a counter of refused hits. When it reaches the amount, its TTL becomes the ban.
local penalty = {}
algorithms.p = penalty

function penalty.read(rule)
  rule.ban, rule.longest = rule[4], rule[5]
  read_counter(rule, math.max(rule.period, rule.ban, rule.longest))
end

function penalty.wait(rule) return rule.count >= rule.amount and rule.left * 1000 or 0 end

-- Also used by a peek, which reports the ban that the hit would cause but writes nothing.
function penalty.strike(rule)
  rule.count = rule.count + 1
  local times, ban = rule.count / rule.amount, nil
  if times == 1 then
    ban = rule.ban
  elseif rule.count % rule.amount == 0 and rule.longest > 0 then
    ban = math.min(rule.ban * 2 ^ math.min(times - 1, 40), rule.longest)
  end
  rule.left = ban or rule.count == 1 and rule.period or rule.left
  if rule.peek then return end
  if rule.count == 1 then
    redis.call('SET', rule.key, 1, 'PX', whole(rule.left))
  else
    redis.call('INCR', rule.key)
    if ban or rule.shortened then redis.call('PEXPIRE', rule.key, whole(rule.left)) end
  end
end

-- Of two bans the one that ends later wins, so that the order in which instances report them does
-- not matter.
function penalty.impose(rule)
  if rule.count >= rule.amount and rule.left >= rule.ban then return end
  rule.count, rule.left = rule.amount, rule.ban
  redis.call('SET', rule.key, rule.amount, 'PX', whole(rule.ban))
end

penalty.report = fixed.report
