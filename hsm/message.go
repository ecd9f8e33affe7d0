package hsm

import (
	"bytes"
	"crypto/subtle"
	"fmt"
)

// MessageInput is what the keys of one message are derived from.
type MessageInput struct {
	Nonce [24]byte // N: the key of the message uses the first 12 bytes, GCM the rest
	T     [32]byte // t, bound to header and context: the first 24 bytes are used
}

// MessageKeys are the keys of one message. Wipe them after use.
type MessageKeys struct {
	Msg [32]byte // K_msg, for AES-256-GCM with the nonce N[12:24]
	Com [32]byte // K_com, for the commitment
}

// Wipe zeroes the keys.
func (k *MessageKeys) Wipe() { *k = MessageKeys{} }

// Use says what message keys are for.
type Use uint8

const (
	// Seal derives the keys of a new message. Its blocks are sent twice, at two
	// places of the call, and compared: a wrong block or a mix-up would seal a
	// message that never opens again.
	Seal Use = 1
	// Open derives the keys of a message that exists. Its commitment tells whether
	// they are the right ones.
	Open Use = 2
)

// messageBlocks is the number of blocks the keys of one message need.
const messageBlocks = 4

// cost is the number of blocks one message takes of a call.
func (u Use) cost() int {
	if u == Seal {
		return 2 * messageBlocks
	}
	return messageBlocks
}

// putBlocks writes the four blocks of suite 1 to dst:
//
//	(00 01 'X' 00 || N[0:12]) ^ K1    (00 02 'X' 00 || N[0:12]) ^ K1     K_msg, as in XAES-256-GCM
//	(00 01 'C' 00 || t[0:12]) ^ K1    (00 02 'C' 00 || t[12:24]) ^ K1    K_com
func (in *MessageInput) putBlocks(dst []byte, k1 *[16]byte) {
	putBlock(dst[0:], 1, 'X', in.Nonce[:12], k1)
	putBlock(dst[16:], 2, 'X', in.Nonce[:12], k1)
	putBlock(dst[32:], 1, 'C', in.T[:12], k1)
	putBlock(dst[48:], 2, 'C', in.T[12:24], k1)
}

// call is one HSM call and the messages that share it. Its blocks are:
//
//	a block of zeros, whose answer must be L
//	four blocks of every message, in the order of the queue
//	the second copies of the messages to seal: block 1 of every one of them, then
//	all blocks 2, all blocks 0, all blocks 3
//
// The two orders have no shift, reversal or exchange of equal parts in common:
// answers that are out of place by any of these differ between the copies.
type call struct {
	batch    []*waiter
	blocks   int // that batch needs
	seals    int // messages of batch that are sealed
	src, dst [MaxBlocks * BlockSize]byte
}

// add takes w into the call; false if it does not fit.
func (c *call) add(w *waiter) bool {
	if c.blocks == 0 {
		c.blocks = 1 // of zeros
	}
	if c.blocks+w.use.cost() > MaxBlocks {
		return false
	}
	c.blocks += w.use.cost()
	if w.use == Seal {
		c.seals++
	}
	c.batch = append(c.batch, w)
	return true
}

// copyAt is the place of the second copy of block b of the i-th sealed message.
func (c *call) copyAt(i, b int) int {
	rank := [messageBlocks]int{2, 0, 1, 3}[b]
	return 1 + len(c.batch)*messageBlocks + rank*c.seals + i
}

// pairs calls f with the places of both copies of every block that is sealed.
func (c *call) pairs(f func(first, second int)) {
	sealed := 0
	for i, w := range c.batch {
		if w.use != Seal {
			continue
		}
		for b := range messageBlocks {
			f(1+i*messageBlocks+b, c.copyAt(sealed, b))
		}
		sealed++
	}
}

// prepare fills src and returns the two halves of the call.
func (c *call) prepare(k1 *[16]byte) (dst, src []byte) {
	for i, w := range c.batch {
		w.in.putBlocks(block(c.src[:], 1+i*messageBlocks, messageBlocks), k1)
	}
	c.pairs(func(first, second int) {
		copy(block(c.src[:], second, 1), block(c.src[:], first, 1))
	})
	n := c.blocks * BlockSize
	return c.dst[:n], c.src[:n]
}

// finish checks the answers and hands each waiter its keys. With one wrong block
// nothing in the call is believed: ErrWrongAnswer. Blocks that follow one another are
// different in every call, and so must be their answers.
func (c *call) finish(l *[16]byte) error {
	if subtle.ConstantTimeCompare(block(c.dst[:], 0, 1), l[:]) != 1 {
		return fmt.Errorf("%w: it encrypts with another key", ErrWrongAnswer)
	}
	for i := range len(c.batch) * messageBlocks {
		if bytes.Equal(block(c.dst[:], i, 1), block(c.dst[:], i+1, 1)) {
			return fmt.Errorf("%w: one for two blocks", ErrWrongAnswer)
		}
	}
	same := 1
	c.pairs(func(first, second int) {
		same &= subtle.ConstantTimeCompare(block(c.dst[:], first, 1), block(c.dst[:], second, 1))
	})
	if same != 1 {
		return fmt.Errorf("%w: two for one block", ErrWrongAnswer)
	}
	for i, w := range c.batch {
		keys := block(c.dst[:], 1+i*messageBlocks, messageBlocks)
		copy(w.keys.Msg[:], keys)
		copy(w.keys.Com[:], keys[len(w.keys.Msg):])
	}
	return nil
}

// reset empties the call and wipes what it held.
func (c *call) reset() {
	n := c.blocks * BlockSize
	clear(c.src[:n])
	clear(c.dst[:n])
	clear(c.batch)
	c.batch, c.blocks, c.seals = c.batch[:0], 0, 0
}

// block is n blocks of b, from block i on.
func block(b []byte, i, n int) []byte {
	return b[i*BlockSize : (i+n)*BlockSize]
}
