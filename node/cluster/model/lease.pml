/* The lease that lets a node answer by itself: a safety model for Spin 6.5.
 * ../lease.go and ../../kms/gate are what is modelled; README.md says how to run it.
 *
 * - Raft is a correct consensus: the leader of a term commits an entry only while no
 *   higher term was elected. A deposed leader may go on, and what it sent arrives late.
 * - Any step may be late by any time: pauses, garbage collection, messages delayed,
 *   reordered or lost.
 * - One lessee F (a restriction waits for each holder by itself) and one operation at a
 *   time there (others only delay F's acknowledgements).
 * - No clock: a time is written as the units left until it, 0 when it has come. So time
 *   has no end. D is the lease; one unit is the bound of the re-check at the hand-over.
 * - An index is the number of entries up to it among the two that matter: the
 *   restriction, and F's removal. So ticks have no end either.
 * - F is given more than the code gives: the floor starts with the election, before
 *   ownTerm's, and a removed node is granted leases until it is let go.
 *
 * At every hand-over of a result:
 *   fresh      the lease check it rests on came before the restriction returned;
 *   in_time    the restriction has not returned, or did so in this unit and without an
 *              acknowledgement of F: once F has acknowledged, nothing older comes out.
 *
 * REMOVE adds F's removal. Each M_ flag removes one rule and must break an assertion;
 * README.md lists them.
 */
#ifndef D
#define D 2                 /* 2..4 */
#endif
#ifndef MAXTERM
#define MAXTERM 2           /* 1..4; two nodes lead in turn */
#endif
#ifdef M_DRIFT
#define LESSEE_D (D + 1)    /* F's clock is slow and the leader adds no margin */
#else
#define LESSEE_D D
#endif
#define NL 6                /* > LESSEE_D */
#define NONE 255

/* the log */
byte term = 1;              /* highest elected */
byte commit = 0;
byte rIdx = 0;              /* the restriction's index, 0 before */
byte rTerm = 0;
byte rmIdx = 0;             /* the index of F's removal, 0 before */
bool gone = false;          /* F is no lease holder any more */

/* the restricting call */
#define OPEN 0              /* has not returned */
#define GRACE 1             /* returned in this unit: F's lease was over */
#define SHUT 2              /* returned earlier, or F had acknowledged */
byte ret = OPEN;

/* leader sessions, index = term */
byte bound[MAXTERM + 1];    /* a lease of F may live until then */
byte until[MAXTERM + 1];    /* what the restriction waits for */
byte rq[MAXTERM + 1];       /* request held: what is left of the lease asked for, 0 none */
bool rqOld[MAXTERM + 1];    /* it comes from before F's restart */
byte gr[MAXTERM + 1];       /* grant under way: what is left of the lease, 0 none */
bool grOld[MAXTERM + 1];
byte grMin[MAXTERM + 1];    /* the index of its tick */
#ifdef M_LATEBOUND
byte unsaid[MAXTERM + 1];
#endif
#ifdef M_RMEARLYFLOOR
bool own = true;            /* the leader has committed an entry in its term */
#endif

/* the lessee F */
byte applied = 0;
#ifdef M_ACKRECV
byte received = 0;
#endif
bool ackR = false;          /* F has acknowledged the restriction */
bool ackRm = false;         /* and its removal */
byte rqM = 0;               /* request on its way to a leader */
bool rqMOld = false;
byte lease[NL] = NONE;      /* R6: the set of leases: what is left of each -> its index */

/* the operation */
#define IDLE 0
#define LEASED 1            /* R3a passed */
#define PASSED 2            /* R3b passed: on its way to the transport */
byte op = IDLE;
bool fresh = false;         /* the restriction had not returned at R3a */
bool aged = false;          /* a unit has begun since R3a: less than a unit may have passed */

byte i = 0;
bool held = false;
bool in_time = false;

/* ---- the rules ---- */

/* R2 */
#ifdef M_NOMIN
#define COVERS(left) (lease[left] != NONE)
#else
#define COVERS(left) (lease[left] <= applied)
#endif
#define USABLE (COVERS(1) || COVERS(2) || COVERS(3) || COVERS(4) || COVERS(5))

/* R3b */
#ifdef M_ACKGONE
#define SERVES true
#else
#define SERVES (rmIdx == 0 || applied < rmIdx)
#endif
#define ALLOWED (SERVES && (rIdx == 0 || applied < rIdx))

/* R0 */
#ifdef M_NOR0
#define HANDED_OVER true
#else
#define HANDED_OVER (op != PASSED)
#endif
#ifdef M_ACKRECV
#define ACKABLE received
#define LOG received
#else
#define ACKABLE applied
#define LOG commit
#endif

/* R4 */
#ifdef M_NOWAIT
#define FLOOR 0
#elif defined(M_EARLYFLOOR)
#define FLOOR (D - 1)       /* from its candidacy, a unit before the election */
#elif defined(M_FLAP)
#define FLOOR (term > 2 -> bound[term - 2] : D)
#elif defined(M_REMOVE)
#define FLOOR (rmIdx != 0 -> 0 : D)
#else
#define FLOOR D
#endif

/* R5 */
#ifdef M_LATEBOUND
#define BEFORE_TICK(t) unsaid[t] = D
#define AFTER_GRANT(t) bound[t] = (bound[t] > unsaid[t] -> bound[t] : unsaid[t]); unsaid[t] = 0
#else
#define BEFORE_TICK(t) bound[t] = D
#define AFTER_GRANT(t) skip
#endif

/* R6 */
#ifdef M_RESTART
#define REMEMBERED(t) true
#else
#define REMEMBERED(t) (!grOld[t])
#endif
#ifdef M_RECVTIME
#define LEFT(t) D
#else
#define LEFT(t) gr[t]
#endif

/* R7 */
#ifdef M_NOVERIFY
#define LEADS(t) (t <= term)                            /* it believes so */
#define TICK(t) (rIdx != 0 && rTerm > t -> rIdx - 1 : commit)
#else
#define LEADS(t) (t == term)
#define TICK(t) commit
#endif

/* overSince */
#ifdef M_RMEARLYFLOOR
#define OVER (own && bound[term] == 0 || !own && (term == 2 || bound[term - 2] == 0))
#define OWN own = true
#else
#define OVER (bound[term] == 0)
#define OWN skip
#endif

/* ---- steps ---- */

inline less(x) { x = (x > 0 -> x - 1 : 0) }

inline end_operation() { op = IDLE; fresh = false; aged = false }

/* What is over is forgotten, so that states that do not differ are one. */
inline time_passes() {
  for (i : 1 .. MAXTERM) {
    less(bound[i]); less(until[i]); less(rq[i]); less(gr[i]);
    rqOld[i] = rqOld[i] && rq[i] != 0;
    grOld[i] = grOld[i] && gr[i] != 0;
    grMin[i] = (gr[i] != 0 -> grMin[i] : 0);
#ifdef M_LATEBOUND
    less(unsaid[i])
#endif
  }
  less(rqM); rqMOld = rqMOld && rqM != 0;
  for (i : 1 .. NL - 2) { lease[i] = lease[i + 1] }
  i = 0;
  ret = (ret == GRACE -> SHUT : ret);
#ifndef M_NORECHECK
  if
  :: aged -> end_operation()            /* too long since R3a: checked again, or wiped */
  :: else -> aged = (op != IDLE)
  fi
#endif
}

inline elect() {
  term++;
  bound[term] = (gone -> 0 : FLOOR);
  until[term] = (rIdx != 0 && ret == OPEN -> bound[term] : 0);
#ifndef M_NOVERIFY
  rq[term - 1] = 0; rqOld[term - 1] = false;            /* its tick can no more be committed */
#endif
#if !defined(M_FLAP) && !defined(M_RMEARLYFLOOR)
  bound[term - 1] = 0;
#endif
#ifdef M_RMEARLYFLOOR
  own = false;
#endif
}

/* Of leases that end together the one with the lowest index is as good as all, and
 * one that ends later with an index as low is better. */
inline install(left, index) {
  for (i : left .. NL - 1) { held = held || lease[i] <= index }
  if
  :: !held ->
     lease[left] = index;
     for (i : 1 .. left - 1) { lease[i] = (lease[i] < index -> lease[i] : NONE) }
  :: else
  fi;
  i = 0; held = false
}

inline restrict_returns() {
  for (i : 1 .. MAXTERM) { until[i] = 0 }
  i = 0;
  ret = (ackR || ackRm -> SHUT : GRACE)
}

inline restart() {
  rqMOld = (rqM != 0);
  for (i : 1 .. MAXTERM) { rqOld[i] = (rq[i] != 0); grOld[i] = (gr[i] != 0) }
#ifndef M_RESTART
  for (i : 1 .. NL - 1) { lease[i] = NONE }
#endif
  i = 0;
  applied = 0;              /* and applies any part of the log again */
  end_operation()
}

#define SESSION(t) \
  :: d_step { rqM != 0 && LEADS(t) -> printf("leader %d: request arrives (R5)\n", t); \
       rq[t] = rqM; rqOld[t] = rqMOld; rqM = 0; rqMOld = false; BEFORE_TICK(t) } \
  :: d_step { rq[t] != 0 && LEADS(t) && !gone -> printf("leader %d: tick committed, grant sent (R7)\n", t); \
       gr[t] = rq[t]; grOld[t] = rqOld[t]; grMin[t] = TICK(t); rq[t] = 0; rqOld[t] = false; OWN } \
  :: d_step { gr[t] != 0 -> printf("F: grant of leader %d arrives, index %d (R6)\n", t, grMin[t]); \
       if :: REMEMBERED(t) -> install(LEFT(t), grMin[t]) :: else fi; \
       AFTER_GRANT(t); gr[t] = 0; grOld[t] = false; grMin[t] = 0 } \
  :: d_step { rIdx != 0 && ret == OPEN && rTerm <= t && t <= term && (ackR || gone || until[t] == 0) -> \
       printf("leader %d: restriction returns (R8)\n", t); restrict_returns() }

active proctype cluster() {
  do
  :: d_step { printf("a unit of time passes\n"); time_passes() }

  :: d_step { term < MAXTERM -> printf("leader %d is elected (R4)\n", term + 1); elect() }
  :: d_step { rIdx == 0 -> printf("leader %d: restriction committed\n", term);
       commit++; rIdx = commit; rTerm = term; until[term] = bound[term]; OWN }
#ifdef REMOVE
  :: d_step { rmIdx == 0 -> printf("leader %d: removal of F committed\n", term);
       commit++; rmIdx = commit; OWN }
  :: d_step { rmIdx != 0 && !gone && (ackRm || OVER) -> printf("leader %d: F is let go\n", term);
       gone = true; OWN }
#endif

  SESSION(1)
#if MAXTERM > 1
  SESSION(2)
#endif
#if MAXTERM > 2
  SESSION(3)
#endif
#if MAXTERM > 3
  SESSION(4)
#endif
#if defined(M_DUP)
  :: d_step { rIdx != 0 && ret == OPEN -> printf("restriction repeated, answered from memory\n"); restrict_returns() }
#elif defined(M_REMOVE)
  :: d_step { rIdx != 0 && ret == OPEN && rmIdx != 0 -> printf("restriction returns\n"); restrict_returns() }
#endif

  :: d_step { rqM != LESSEE_D || rqMOld -> printf("F: asks for a lease (R1)\n");
       rqM = LESSEE_D; rqMOld = false }                 /* the request before is lost, if it has not arrived */
#ifdef M_ACKRECV
  :: d_step { received < commit -> printf("F: receives an entry\n"); received++ }
#endif
  :: d_step { applied < LOG -> applied++; printf("F: applies %d\n", applied) }
  :: d_step { !ackR && rIdx != 0 && ACKABLE >= rIdx && HANDED_OVER -> printf("F: acknowledges the restriction (R0)\n");
       ackR = true }
#ifdef REMOVE
  :: d_step { !ackRm && rmIdx != 0 && ACKABLE >= rmIdx && HANDED_OVER -> printf("F: acknowledges its removal (R0)\n");
       ackRm = true }
#endif
  :: d_step { printf("F: restarts\n"); restart() }

  /* The operation; when it was computed before R3a does not matter. */
#if defined(M_NOFINAL)
  :: d_step { op == IDLE && USABLE && ALLOWED -> printf("F: lease and state allow it\n"); op = LEASED }
  :: d_step { op == LEASED -> printf("F: computes\n"); op = PASSED; fresh = (ret == OPEN) }
#elif defined(M_SWAP)
  :: d_step { op == IDLE && ALLOWED -> printf("F: state allows it\n"); op = LEASED; fresh = (ret == OPEN) }
  :: d_step { op == LEASED && USABLE -> printf("F: lease holds\n"); op = PASSED }
#else
  :: d_step { op == IDLE && USABLE -> printf("F: lease holds (R3a)\n"); op = LEASED; fresh = (ret == OPEN) }
  :: d_step { op == LEASED && ALLOWED -> printf("F: state allows it (R3b)\n"); op = PASSED }
#endif
  :: d_step { op != IDLE -> printf("F: wipes\n"); end_operation() }
  :: d_step { op == PASSED -> printf("F: hands over\n");
       in_time = (ret != SHUT); assert(fresh); assert(in_time); in_time = false; end_operation() }
  od
}
