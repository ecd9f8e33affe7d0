package envelope

// NewSealWriterFrom is NewSealWriter with a source of salt and nonce.
var NewSealWriterFrom = newSealWriter

// Advance has w believe that it has taken n bytes.
func (w *SealWriter) Advance(n int64) { w.n += n }
