-- Leases: who holds the slots of a subject. This script acquires, renews and releases them.
--
-- KEYS[1]: a sorted set of tokens; the score is the end of the lease, in milliseconds by the
-- server's clock. Two members are not tokens:
--   "~"  keeps the key for one lease after its last use. If the key is missing although a process
--   used it a moment ago, the server has lost its data.
--   "!"  keeps the slots closed for half a lease after such a loss, until processes that still hold
--   a slot have renewed their leases.
-- ARGV: acquire | renew | release, the token, the number of slots, the lease in milliseconds, and 1
-- if the caller knows that the key existed less than a lease ago.
--
-- Returns 1 if the token holds a slot (renew: without interruption), the number of free slots, the
-- milliseconds until the next lease ends, and 1 if the server has lost its data.

local key, action, token = KEYS[1], ARGV[1], ARGV[2]
local amount, lease, known = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function put(member, ends)
  redis.call('ZADD', key, string.format('%d', ends), member)
end

local data_lost = known and redis.call('EXISTS', key) == 0
redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%d', now))
if action == 'release' then
  redis.call('ZREM', key, token)
elseif data_lost then
  put('!', now + math.floor(lease / 2))
end

local held = redis.call('ZSCORE', key, token)
local closed = redis.call('ZSCORE', key, '!')
local stays = redis.call('ZSCORE', key, '~')
local marks = (closed and 1 or 0) + (stays and 1 or 0)
local taken = redis.call('ZCARD', key) - marks
local granted = 0

if action == 'acquire' and (held or (taken < amount and not closed)) then
  granted = 1
elseif action == 'renew' and held then
  granted = 1
end
-- A renewal of a lost lease takes a free slot again, so that no third process gets it.
if granted == 1 or (action == 'renew' and taken < amount) then
  put(token, now + lease)
  taken = taken + (held and 0 or 1)
end
if not stays or tonumber(stays) < now + lease then
  marks = marks + (stays and 0 or 1)
  put('~', now + lease)
end
local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
redis.call('PEXPIRE', key, string.format('%d', tonumber(last[2]) - now))

local wait = 0
if granted == 0 and action == 'acquire' then
  wait = closed and tonumber(closed) - now or 0
  local ends = redis.call('ZRANGE', key, 0, math.max(taken - amount, 0) + marks, 'WITHSCORES')
  local over = taken - amount
  for i = 1, #ends, 2 do
    if ends[i] ~= '~' and ends[i] ~= '!' then
      if over == 0 then
        wait = math.max(wait, tonumber(ends[i + 1]) - now)
      end
      over = over - 1
    end
  end
end
return {granted, math.max(amount - taken, 0), math.floor(wait), data_lost and 1 or 0}
