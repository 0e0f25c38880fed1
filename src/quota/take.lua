-- Takes a slot in every window that counts an attempt, or in none, on the server's clock; and before
-- that, writes down what became of slots that were taken earlier. One round trip, one atomic step.
--
-- All times are in microseconds. What comes in are lengths, counted from now; the server's clock is
-- read here and nowhere else.
--
-- KEYS  [1] members: a sorted set, ID.SEAT scored by the time at which it counts as missing
--       [2] state: a hash with the time at which the store came to be (`born`)
--       then two for each window:
--         slots: a sorted set, ID:SEQUENCE:N scored by the time at which that slot is free
--         claims: a hash, n<ID> the slots that it holds, c<ID.SEAT> its claim (`u`, or `v` for one
--                 that is covered), t<SEAT> the last turn of a seat,
--                 and `o` if it was left to another, a<ID:SEQUENCE> from when on what was given
--                 ahead may be used, f<ID:SEQUENCE> how many of those are somebody else's until
--                 then, `last` the time of the last call that was spaced, q<ID.SEAT> since
--                 when it waits for a slot and until when it is waited for, `long` how long a slot cools
--                 by the longest settings of late, until when those hold, and until when nothing is given
--                 since it became longer
-- ARGV  owner, born, deadline, lease (0 for one who is no member yet), replicas, list members (0 or
--       1), number of notes, number of wants
--       each note: window, name, slots, slots it had, time left, how long it cools in all; or window,
--                  "", 0, 0, 0, 0 to give up the claim
--       each want: window, name, at least, at most, limit, gap, horizon, hold, force (0; 1 if
--                  it was taken already, 2 if its claim was covered as well, 3 if it was taken
--                  already and nothing is forgotten that may still count)
-- Gives {"late"} if the deadline has passed, {"unknown"} if the caller is no member any more, else
--       {"taken" or "later", now, time until it may be sent or tried again, missing,
--        slots (if later: 0 if it is because of this window), covered (0 or 1), slots of others
--        for each want..., members...}
--
-- Why the sum holds: a member may, while it cannot reach the store, use its share (`share` below) of
-- every window that it has a covered claim on, and of every other window once it counts as missing.
-- So nobody is given a slot that belongs to a covered claim or to a missing member, and nobody beyond
-- his own share one that somebody else claims. A slot that is given ahead is somebody else's until its
-- time: whoever has it, and perhaps did not hear of it, has his share beside it. And nothing is given to
-- be used later than the moment at which somebody who has no covered claim will be missing, unless he is
-- heard of again.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local members, state = KEYS[1], KEYS[2]
local owner, replicas = ARGV[1], tonumber(ARGV[5])

if now > tonumber(ARGV[3]) then
  return {'late', now}
end
if redis.call('HGET', state, 'born') ~= ARGV[2] then
  return {'unknown', now}
end
if ARGV[4] ~= '0' then
  if not redis.call('ZSCORE', members, owner) then
    return {'unknown', now}
  end
  redis.call('ZADD', members, now + ARGV[4], owner)
end
local TWO_HOURS = 7200000
redis.call('PEXPIRE', members, TWO_HOURS)
redis.call('PEXPIRE', state, TWO_HOURS)

local function key(window)
  return KEYS[2 * window + 1], KEYS[2 * window + 2]
end

local function id_of(name)
  return string.match(name, '^%d+')
end

local function seat_of(name)
  return tonumber(string.match(name, '%.(%d+)$'))
end

local function count(claims, id, by)
  if by ~= 0 and redis.call('HINCRBY', claims, 'n' .. id, by) <= 0 then
    redis.call('HDEL', claims, 'n' .. id)
  end
end

local function prune(slots, claims)
  local gone = redis.call('ZRANGEBYSCORE', slots, '-inf', now)
  if #gone > 0 then
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    local counts = {}
    for _, name in ipairs(gone) do
      local id = id_of(name)
      counts[id] = (counts[id] or 0) + 1
    end
    for id, n in pairs(counts) do
      count(claims, id, -n)
    end
  end
end

-- Slots that have expired as a whole are not counted any more.
local function recount(slots, claims)
  if redis.call('EXISTS', slots) == 0 then
    for _, field in ipairs(redis.call('HKEYS', claims)) do
      if string.sub(field, 1, 1) == 'n' then
        redis.call('HDEL', claims, field)
      end
    end
  end
end

local function put(slots, claims, name, first, last, free_at)
  local added = 0
  for n = first, last do
    added = added + redis.call('ZADD', slots, free_at, name .. ':' .. n)
  end
  count(claims, id_of(name), added)
end

-- What was given ahead took the place of a slot that cools: given back, it is that again.
local function del(slots, claims, name, first, last)
  local removed = 0
  local ahead = tonumber(redis.call('HGET', claims, 'a' .. name) or 0)
  for n = first, last do
    local slot = name .. ':' .. n
    if ahead <= now then
      removed = removed + redis.call('ZREM', slots, slot)
    elseif redis.call('ZSCORE', slots, slot) then
      redis.call('ZADD', slots, ahead, slot)
    end
  end
  -- Until then it is no slot of his (see above).
  if ahead > 0 and ahead <= now then
    redis.call('HDEL', claims, 'a' .. name)
    redis.call('HDEL', claims, 'f' .. name)
  end
  count(claims, id_of(name), -removed)
end

-- How long slots cool by the longest settings that anybody has had of late, until when those hold, and until
-- when nobody knows what was sent.
local function longest(claims)
  local long = redis.call('HGET', claims, 'long')
  if long then
    local length, till, unknown = string.match(long, '^(%d+):(%d+):(%d+)$')
    return tonumber(length), tonumber(till), tonumber(unknown)
  end
end

-- Settings may have another length here than there, when a window was made longer or shorter: the longest
-- holds for everybody, for what cools already as well.
local function lengthen(slots, claims, horizon)
  local length, till, unknown = longest(claims)
  local before = {length, till}
  if not length then
    length, till, unknown = horizon, now + 2 * horizon, 0
  elseif horizon > length then
    local all = redis.call('ZRANGE', slots, 0, -1, 'WITHSCORES')
    for s = 1, #all, 2 do
      redis.call('ZADD', slots, all[s + 1] + horizon - length, all[s])
    end
    local fields = redis.call('HGETALL', claims)
    for f = 1, #fields, 2 do
      if string.sub(fields[f], 1, 1) == 'a' then
        redis.call('HSET', claims, fields[f], string.format('%.0f', fields[f + 1] + horizon - length))
      end
    end
    unknown = now + horizon - length
    length, till = horizon, now + 2 * horizon
  elseif horizon == length and till < now + horizon or horizon < length and till <= now then
    length, till = horizon, now + 2 * horizon
  end
  if length ~= before[1] or till ~= before[2] then
    redis.call('HSET', claims, 'long', string.format('%.0f:%.0f:%.0f', length, till, unknown))
  end
  return length - horizon, unknown
end

-- Both keys of a window go when its last slot is free, a claim without slots after a minute.
local function expire(slots, claims)
  local last = redis.call('ZRANGE', slots, -1, -1, 'WITHSCORES')
  local at = math.max(tonumber(last[2] or 0), now) / 1000
  redis.call('PEXPIREAT', slots, math.floor(at) + 1000)
  redis.call('PEXPIREAT', claims, math.floor(at) + 60000)
end

local arg = 8
local function following(n)
  local values = {unpack(ARGV, arg + 1, arg + n)}
  arg = arg + n
  return unpack(values)
end

for _ = 1, tonumber(ARGV[7]) do
  local window, name, has, had, left, cools = following(6)
  local slots, claims = key(tonumber(window))
  if name == '' then
    redis.call('HDEL', claims, 'c' .. owner)
    redis.call('HDEL', claims, 'q' .. owner)
  else
    has, had, left = tonumber(has), tonumber(had), tonumber(left)
    left = left + math.max(0, (longest(claims) or 0) - tonumber(cools))
    if left <= 0 then
      has = 0
    end
    recount(slots, claims)
    put(slots, claims, name, 1, has, now + left)
    del(slots, claims, name, has + 1, had)
    expire(slots, claims)
  end
end

-- Of those who are missing no more can be alive than there are gateways less those that are heard of:
-- the largest shares are kept, whoever has them.
local missing, gone = redis.call('ZRANGEBYSCORE', members, '-inf', now), {}
local unheard = #missing
local most = math.max(0, replicas - (redis.call('ZCARD', members) - unheard))
if #missing > most then
  table.sort(missing, function(one, other)
    local a, b = seat_of(one), seat_of(other)
    if (a < replicas) ~= (b < replicas) then
      return a < replicas
    end
    return a > b
  end)
  while #missing > most do
    gone[table.remove(missing)] = true
  end
end
-- The seats of those who are heard of.
local heard
local function seats_heard_of()
  if not heard then
    heard = {}
    for _, whose in ipairs(redis.call('ZRANGEBYSCORE', members, now + 1, '+inf')) do
      if seat_of(whose) < replicas then
        heard[#heard + 1] = seat_of(whose)
      end
    end
  end
  return heard
end

local at, later, answers, wants = now, nil, {}, {}

for w = 1, tonumber(ARGV[8]) do
  local want = {}
  want.window, want.name, want.min, want.max, want.limit, want.gap, want.horizon, want.hold, want.force =
    following(9)
  for _, field in ipairs({'window', 'min', 'max', 'limit', 'gap', 'horizon', 'hold'}) do
    want[field] = tonumber(want[field])
  end
  want.slots, want.claims = key(want.window)
  local more, unknown = lengthen(want.slots, want.claims, want.horizon)
  want.hold = want.hold + more
  prune(want.slots, want.claims)
  local total = redis.call('ZCARD', want.slots)
  local limit = want.limit
  local floor = math.floor(limit / replicas)
  local function share(whose)
    local seat = seat_of(whose)
    if floor > 0 and seat < replicas and seat >= replicas - limit % replicas then
      return floor + 1
    end
    return floor
  end

  -- Who holds and who claims how much.
  local held, claimed, queue, turns, later_of = {}, {}, {}, {}, {}
  local fields = redis.call('HGETALL', want.claims)
  for f = 1, #fields, 2 do
    local kind, whose = string.sub(fields[f], 1, 1), string.sub(fields[f], 2)
    if kind == 'n' then
      if total == 0 then
        -- The slots have expired as a whole.
        redis.call('HDEL', want.claims, fields[f])
      else
        held[whose] = tonumber(fields[f + 1])
      end
    elseif kind == 'c' then
      if gone[whose] then
        claimed[whose] = nil
      elseif redis.call('ZSCORE', members, whose) then
        claimed[whose] = fields[f + 1]
      else
        redis.call('HDEL', want.claims, fields[f])
      end
    elseif kind == 'q' then
      local since, till = string.match(fields[f + 1], '^(%d+):(%d+)$')
      if tonumber(till) + 2 * want.horizon <= now then
        redis.call('HDEL', want.claims, fields[f])
      elseif whose == owner then
        want.since = tonumber(since)
      elseif tonumber(till) > now then
        queue[#queue + 1] = {tonumber(since), seat_of(whose)}
      end
    elseif kind == 'a' then
      if tonumber(fields[f + 1]) <= now then
        redis.call('HDEL', want.claims, fields[f])
        redis.call('HDEL', want.claims, 'f' .. whose)
      else
        local others = tonumber(redis.call('HGET', want.claims, 'f' .. whose) or 0)
        later_of[id_of(whose)] = (later_of[id_of(whose)] or 0) + others
      end
    elseif kind == 't' then
      local turn, left = string.match(fields[f + 1], '^(%d+)(o?)$')
      turns[tonumber(whose)] = {tonumber(turn), left == 'o'}
    elseif fields[f] == 'last' then
      want.last = tonumber(fields[f + 1])
    end
  end
  for _, whose in ipairs(missing) do
    claimed[whose] = 'v'
  end
  local mine = held[id_of(owner)] or 0
  local covered, all, by_id = 0, 0, {[id_of(owner)] = owner}
  for whose, claim in pairs(claimed) do
    by_id[id_of(whose)] = whose
    if whose ~= owner then
      local id = id_of(whose)
      local unused = math.max(0, share(whose) - (held[id] or 0) + (later_of[id] or 0))
      all = all + unused
      if claim == 'v' then
        covered = covered + unused
      end
    end
  end
  want.covered, want.mine, want.total, want.share = covered, mine, total, share(owner)
  want.mine_later = later_of[id_of(owner)] or 0
  want.claim = claimed[owner]
  function want.is_kept_for(whose)
    return floor > 0 and claimed[whose] == 'v'
  end

  -- Beyond the shares it is first come, first served.
  local ahead = 0
  if floor > 0 or #missing == 0 then
    for _, other in ipairs(queue) do
      if other[1] < (want.since or now) then
        ahead = ahead + 1
      end
    end
  end
  -- What others must be able to take, from what is free.
  local function spare()
    local reserved = mine + want.min <= want.share and covered or all + ahead
    return limit - total - reserved
  end
  local free = spare()
  want.take = math.min(want.max, math.max(free, want.min))
  if want.force ~= '0' then
    want.take = want.min
  elseif unknown > now then
    later = math.max(later or 0, unknown - now)
    want.denied = unknown - now
  elseif free < want.min then
    -- Ahead in time, as far as slots cool: the moment at which enough of them are free. A slot of one
    -- who claims no more than his share is his own again, and does not count.
    local index, found, freed, unused = 0, false, {}, all
    while not found do
      local some = redis.call('ZRANGE', want.slots, index, index + 31, 'WITHSCORES')
      index = index + 32
      for s = 1, #some, 2 do
        local id, free_at = id_of(some[s]), tonumber(some[s + 1])
        if free_at - now > want.horizon then
          break
        end
        total = total - 1
        held[id] = (held[id] or 0) - 1
        local whose = by_id[id]
        if whose == owner then
          mine = mine - 1
          freed[#freed + 1] = some[s]
        elseif whose and held[id] - (later_of[id] or 0) < share(whose) then
          all = all + 1
          if claimed[whose] == 'v' then
            covered = covered + 1
          end
        else
          freed[#freed + 1] = some[s]
        end
        if spare() >= want.min then
          found = true
          at = math.max(at, free_at)
          break
        end
      end
      if #some < 64 or tonumber(some[#some]) - now > want.horizon then
        break
      end
    end
    if found then
      want.freed = freed
    else
      -- They are at the upstream, or are still to be sent: not before the first of them is that is not for
      -- somebody who has waited for longer. Those that are free are for others who are about to ask.
      local each_round = math.max(limit - unused, want.total, 1)
      local place, rounds = ahead % each_round, math.floor(ahead / each_round)
      local index = math.max(place - (each_round - want.total), 0)
      local first = redis.call('ZRANGE', want.slots, index, index, 'WITHSCORES')
      local wait = math.max(tonumber(first[2] or now) - want.hold - now, 0)
        + rounds * want.horizon
      later = math.max(later or 0, wait)
      want.denied = wait
    end
  end
  if want.gap > 0 and want.last then
    at = math.max(at, want.last + want.gap)
  end
  if floor == 0 and #missing > 0 then
    -- There are too few slots for shares. Those who are missing take turns (redis/share.rs), so
    -- everybody does.
    local piece = math.ceil((want.horizon + math.min(250000, math.floor(want.horizon / 4))) / limit)
    local own, next_turns = seat_of(owner), {}
    want.cycle = replicas * piece
    if own < replicas then
      -- Every other of his turns, if somebody waits who has none.
      local last, rest = turns[own] or {0}, want.cycle
      want.most = 2 * want.cycle
      for _, other in ipairs(queue) do
        if other[2] >= replicas then
          rest, want.most = last[2] and want.cycle or 2 * want.cycle, want.cycle
        end
      end
      next_turns[own] = last[1] + rest - piece / 2
    else
      -- Who has none takes what others leave. Not earlier than they may be cut off and not know.
      for _, seat in ipairs(seats_heard_of()) do
        local last = turns[seat] or {0}
        next_turns[seat] = last[1] + want.cycle - piece / 2
      end
      want.most = want.horizon - math.min(125000, want.horizon / 8)
    end
    function want.turn(from)
      local first
      for seat, not_before in pairs(next_turns) do
        local turn = math.max(from, not_before)
        turn = turn + (seat * piece - turn) % want.cycle
        if not first or turn < first then
          first, want.seat = turn, seat
        end
      end
      return first or from + want.cycle
    end
  end
  wants[w] = want
end

-- The first moment at which it is his turn wherever there are turns. In two windows that may never be: then
-- he asks again a cycle later.
local settled, cycle, most = false, 0, math.huge
for _ = 1, 32 do
  local before = at
  for _, want in ipairs(wants) do
    if want.cycle then
      cycle, most = math.max(cycle, want.cycle), math.min(most, want.most)
      at = want.turn(at)
    end
  end
  settled = at == before
  if settled then
    break
  end
end
if cycle > 0 and not (settled and at - now <= most) then
  later = math.max(later or 0, settled and at - now - most or cycle)
  for _, want in ipairs(wants) do
    want.denied = want.denied or want.cycle and later
  end
end

-- Whoever is not heard of again goes on alone once what was used before he was missing has cooled. Turns are
-- apart however late they are, and what was taken already is of a share.
if not later and at > now then
  local first
  local silent = redis.call('ZRANGEBYSCORE', members, now + 1, at, 'WITHSCORES')
  for m = 1, #silent, 2 do
    for _, want in ipairs(wants) do
      if silent[m] ~= owner and want.force == '0' and not want.cycle and not want.is_kept_for(silent[m]) then
        first = first or tonumber(silent[m + 1])
        want.denied = true
      end
    end
  end
  if first then
    -- By then he is missing or was heard of, and what is given is near enough if he was.
    later = math.max(first - now, at - now - ARGV[4] / 2)
    for _, want in ipairs(wants) do
      want.denied = want.denied and later
    end
  end
end

for w, want in ipairs(wants) do
  if not later then
    local of_others = 0
    if want.freed then
      -- It has the last of them; those before go by themselves until then.
      for n = math.max(1, #want.freed - want.min + 1), #want.freed do
        local name = want.freed[n]
        redis.call('ZREM', want.slots, name)
        count(want.claims, id_of(name), -1)
        want.total = want.total - 1
        if id_of(name) == id_of(owner) then
          want.mine = want.mine - 1
        else
          of_others = of_others + 1
        end
      end
    end
    put(want.slots, want.claims, want.name, 1, want.take, at + want.hold)
    if at > now then
      redis.call('HSET', want.claims, 'a' .. want.name, at)
      -- Until then it is somebody else's: its owner, who may not hear of it, has his share beside it.
      redis.call('HSET', want.claims, 'f' .. want.name, of_others)
      want.mine_later = want.mine_later + of_others
    end
    want.total, want.mine = want.total + want.take, want.mine + want.take
    if want.cycle then
      local left = want.seat ~= seat_of(owner) and 'o' or ''
      redis.call('HSET', want.claims, 't' .. want.seat, string.format('%.0f', at) .. left)
    end
    if want.gap > 0 then
      redis.call('HSET', want.claims, 'last', at + want.gap * (want.take - 1))
    end
  end
  -- A claim is covered as soon as there is room for it beside those that are, and stays so. What was
  -- lost may fill that room: until it is free only those who know that theirs are say so.
  local unused = math.max(0, want.share - want.mine + want.mine_later)
  if want.force == '1' or want.force == '2' then
    want.claim = (want.force == '2' or want.claim == 'v') and 'v' or 'u'
    redis.call('HSET', want.claims, 'c' .. owner, want.claim)
  elseif want.claim ~= 'v' then
    want.claim = want.limit - want.total >= unused + want.covered and 'v' or 'u'
    redis.call('HSET', want.claims, 'c' .. owner, want.claim)
  end
  if later then
    -- Others wait for him a little longer than he does (redis/lease.rs). Who does not take what there is
    -- since he waits elsewhere lets them, and keeps his place.
    local till = now
    if want.denied then
      till = now + want.denied + math.min(want.horizon / 2, want.horizon * 4 / want.limit) + 500000
    end
    redis.call('HSET', want.claims, 'q' .. owner, string.format('%.0f:%.0f', want.since or now, till))
  elseif want.since then
    redis.call('HDEL', want.claims, 'q' .. owner)
  end
  expire(want.slots, want.claims)
  answers[3 * w - 2] = later and (want.denied and 0 or 1) or want.take
  answers[3 * w - 1] = want.claim == 'v' and 1 or 0
  answers[3 * w] = want.total - want.mine
end

local reply = {later and 'later' or 'taken', now, later or at - now, unheard, unpack(answers)}
if ARGV[6] == '1' then
  local list = redis.call('ZRANGE', members, 0, -1, 'WITHSCORES')
  for m = 1, #list, 2 do
    reply[#reply + 1] = list[m]
  end
end
return reply
