-- Bans: the list of bans.
--
-- KEYS[1]: a sorted set of the banned subjects; the score is the end of the ban in milliseconds
--          by the server's clock, or inf
-- KEYS[2]: a hash of details: "<since, in milliseconds> <JSON>"
-- KEYS[3]: a hash of the bans by hand, of which every process has a copy: their ends, and
--          `version`, which changes with each change of the list
-- ARGV[1]: put     a member, the length of the ban in milliseconds or inf, details, 1 for a ban
--                  by hand, the maximum number of members; returns 1, or 0 if the list is full
--          drop    members; returns the details of those that were in the list
--          load    returns the time, the version, and each ban by hand with its end
--          page    an offset and a count; returns the time, and for each ban its member, end and
--                  details
--          find    members; returns the same for those that are banned
-- All keys live for ten years from the last change. So a server that evicts the keys which end first
-- (volatile-ttl) keeps the bans.

local ends, details, hand = KEYS[1], KEYS[2], KEYS[3]
local TEN_YEARS = '315360000000'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local now_text = string.format('%d', now)
local found = {now_text}

local function list(member, finish)
  found[#found + 1] = member
  found[#found + 1] = finish
  found[#found + 1] = redis.call('HGET', details, member) or '0 {}'
end

-- The end of a ban that is in force.
local function banned(member)
  local finish = redis.call('ZSCORE', ends, member)
  return finish and (finish == 'inf' or tonumber(finish) > now) and finish
end

local function forget(member)
  redis.call('ZREM', ends, member)
  redis.call('HDEL', details, member)
  return redis.call('HDEL', hand, member)
end

-- The time in microseconds, so that no version is used twice, even after a loss of data.
local function changed()
  local last = tonumber(redis.call('HGET', hand, 'version') or 0)
  local version = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), last + 1)
  redis.call('HSET', hand, 'version', string.format('%d', version))
end

local function keep()
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], TEN_YEARS)
  end
end

local action = ARGV[1]
if action == 'put' then
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now_text, 'LIMIT', 0, 100)) do
    forget(member)
  end
  local member, length = ARGV[2], ARGV[3]
  local count = redis.call('ZCARD', ends)
  if count >= tonumber(ARGV[6]) and not redis.call('ZSCORE', ends, member) then
    return 0
  end
  local finish = length == 'inf' and 'inf' or string.format('%d', now + tonumber(length))
  redis.call('ZADD', ends, finish, member)
  redis.call('HSET', details, member, now_text .. ' ' .. ARGV[4])
  if ARGV[5] == '1' then
    redis.call('HSET', hand, member, finish)
    changed()
  end
  keep()
  return 1
elseif action == 'drop' then
  local dropped, by_hand = {}, 0
  for i = 2, #ARGV do
    if banned(ARGV[i]) then
      dropped[#dropped + 1] = redis.call('HGET', details, ARGV[i]) or '0 {}'
    end
    by_hand = by_hand + forget(ARGV[i])
  end
  if by_hand > 0 then
    changed()
  end
  keep()
  return dropped
elseif action == 'load' then
  found[2] = redis.call('HGET', hand, 'version') or ''
  local all = redis.call('HGETALL', hand)
  for i = 1, #all, 2 do
    if all[i] ~= 'version' then
      found[#found + 1] = all[i]
      found[#found + 1] = all[i + 1]
    end
  end
elseif action == 'find' then
  for i = 2, #ARGV do
    local finish = banned(ARGV[i])
    if finish then
      list(ARGV[i], finish)
    end
  end
else
  local first = '(' .. now_text
  local page = redis.call(
    'ZRANGEBYSCORE', ends, first, '+inf', 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3]
  )
  for i = 1, #page, 2 do
    list(page[i], page[i + 1])
  end
end
return found
