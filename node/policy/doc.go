// Package policy is draft.
package policy
